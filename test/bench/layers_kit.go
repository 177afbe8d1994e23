package main

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/husk-cri/husk/internal/testkit/images"
)

// layersKit is what the engines pull from: a registry in this process, which
// keeps its blobs on disk, and the files that a node would have in /etc.
type layersKit struct {
	opts   layersOptions
	host   string
	server *http.Server
	public []byte // the key that layers are encrypted for
	job    layersJob
	images int
}

func newLayersKit(ctx context.Context, opts layersOptions) (*layersKit, error) {
	dir := opts.scratch
	k := &layersKit{opts: opts, job: layersJob{
		KeysDir: filepath.Join(dir, "keys"), Policy: filepath.Join(dir, "policy.json"), Registries: filepath.Join(dir, "registries.conf"),
	}}
	if err := os.MkdirAll(filepath.Join(dir, "registry"), 0o700); err != nil {
		return nil, err
	}
	if err := images.GenerateKeys(k.job.KeysDir); err != nil {
		return nil, err
	}
	public := filepath.Join(k.job.KeysDir, images.PublicKeyFile)
	var err error
	if k.public, err = os.ReadFile(public); err != nil {
		return nil, err
	}
	if err := os.Remove(public); err != nil {
		return nil, err
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k.host = l.Addr().String()
	k.server = &http.Server{
		Handler: registry.New(
			registry.Logger(log.New(io.Discard, "", 0)),
			registry.WithBlobHandler(registry.NewDiskBlobHandler(filepath.Join(dir, "registry"))),
		),
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = k.server.Serve(l) }()
	for path, content := range map[string]string{
		k.job.Policy:     `{"default":[{"type":"insecureAcceptAnything"}]}`,
		k.job.Registries: fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", k.host),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			k.close()
			return nil, err
		}
	}
	return k, nil
}

func (k *layersKit) close() { _ = k.server.Close() }

// build makes an image and pushes it.
func (k *layersKit) build(ctx context.Context, shape layerShape, form layerForm) (layersJob, LayersCase, error) {
	k.images++
	job := k.job
	job.Layout = filepath.Join(k.opts.scratch, "layout")
	job.Repository = fmt.Sprintf("%s/bench/layers-%d", k.host, k.images)
	c := LayersCase{
		Image: shape.name, Form: form.name, Layers: shape.layers, Runs: map[string]LayersRun{},
		UnpackedBytes: int64(shape.layers) * int64(shape.files) * int64(shape.bytes),
	}
	spec := images.Spec{Compression: form.compression, Layers: shape.layersOf()}
	if form.encrypted {
		spec.Encrypt = &images.Encryption{PublicKeys: [][]byte{k.public}}
	}
	summary, err := images.Build(ctx, job.Layout, "t", spec)
	if err != nil {
		return job, c, err
	}
	job.Digest, c.StoredBytes = summary.Digest.String(), summary.Instances[0].Bytes
	return job, c, images.Push(ctx, job.Layout, "t", job.Repository+":t")
}

// layersOf are the layers of an image of that shape.
func (s layerShape) layersOf() []images.Layer {
	layers := make([]images.Layer, s.layers)
	for n := range layers {
		layers[n].Tar = func(tw *tar.Writer) error { return s.write(tw, uint64(n)) }
	}
	return layers
}

// write makes the files of one layer.
func (s layerShape) write(tw *tar.Writer, seed uint64) error {
	content := newFiller(seed)
	data := make([]byte, s.bytes)
	for n := range s.files {
		dir := fmt.Sprintf("layer-%d/dir-%d", seed, n/s.dir)
		if n%s.dir == 0 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: images.Epoch}); err != nil {
				return err
			}
		}
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/file-%d", dir, n), Size: int64(s.bytes), Mode: 0o644, ModTime: images.Epoch}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		content.fill(data)
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// filler makes content that compresses about as programs and texts do, to two
// fifths: words of a small language, and one noisy byte in four.
type filler struct {
	random *rand.Rand
	words  [1024][]byte
}

func newFiller(seed uint64) *filler {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	f := &filler{random: rand.New(rand.NewChaCha8(key))}
	for n := range f.words {
		word := make([]byte, 4+f.random.IntN(12))
		for i := range word {
			word[i] = byte('a' + f.random.IntN(26))
		}
		f.words[n] = word
	}
	return f
}

func (f *filler) fill(data []byte) {
	for at := 0; at < len(data); {
		r := f.random.Uint64()
		if r&3 == 0 && at+8 <= len(data) {
			binary.LittleEndian.PutUint64(data[at:], f.random.Uint64())
			at += 8
			continue
		}
		at += copy(data[at:], f.words[r>>2&1023])
	}
}
