package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/containers/image/v5/copy"
	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/signature"
	istorage "github.com/containers/image/v5/storage"
	"github.com/containers/image/v5/types"
	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/storage"
	"github.com/containers/storage/pkg/reexec"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
)

// layersChildEnv holds the job of a child process, as JSON.
const layersChildEnv = "HUSK_BENCH_LAYERS_JOB"

// layersJob is one pull of one image by one engine.
type layersJob struct {
	Engine, Repository, Digest   string
	Dir, Layout, KeysDir, Policy string
	Registries                   string
}

// runLayersChild is to be called first in main: it reports whether this process
// is a child of [measureLayers], or one of containers/storage's, which is then done.
func runLayersChild(ctx context.Context, out io.Writer) (bool, error) {
	if reexec.Init() {
		return true, nil
	}
	data, ok := os.LookupEnv(layersChildEnv)
	if !ok {
		return false, nil
	}
	var job layersJob
	if err := json.Unmarshal([]byte(data), &job); err != nil {
		return true, err
	}
	// containers/storage runs this program again, to untar.
	if err := os.Unsetenv(layersChildEnv); err != nil {
		return true, err
	}
	engines := map[string]func(context.Context) (LayersRun, error){
		"layerpull": func(ctx context.Context) (LayersRun, error) { return timed(ctx, job.layerpull) },
		"copy":      func(ctx context.Context) (LayersRun, error) { return timed(ctx, job.copy) },
		"skopeo":    job.skopeo,
		"floor":     job.floor,
	}
	engine, ok := engines[job.Engine]
	if !ok {
		return true, fmt.Errorf("no engine %q", job.Engine)
	}
	run, err := engine(ctx)
	if err != nil {
		return true, err
	}
	return true, json.NewEncoder(out).Encode(run)
}

func (j layersJob) reference() string { return j.Repository + "@" + j.Digest }

func (j layersJob) layerpull(ctx context.Context) error {
	debug.SetMemoryLimit(layerpull.MemoryLimit) // as a process that only pulls should
	ref, err := imageref.ParseReference(j.reference())
	if err != nil {
		return err
	}
	store, err := layerpull.OpenStore(j.Dir)
	if err != nil {
		return err
	}
	_, err = layerpull.Pull(ctx, ref, store, layerpull.Config{
		KeysDir: j.KeysDir, PolicyPath: j.Policy, RegistriesConf: j.Registries, RegistriesConfDir: "/nonexistent", AuthFile: filepath.Join(j.Dir, "auth.json"),
	})
	return err
}

func (j layersJob) decryption() (*encconfig.DecryptConfig, error) {
	key, err := os.ReadFile(filepath.Join(j.KeysDir, images.PrivateKeyFile))
	if err != nil {
		return nil, err
	}
	return &encconfig.DecryptConfig{Parameters: map[string][][]byte{"privkeys": {key}, "privkeys-passwords": {nil}}}, nil
}

// copy is what CRI-O does.
func (j layersJob) copy(ctx context.Context) (err error) {
	store, err := storage.GetStore(storage.StoreOptions{
		GraphRoot: filepath.Join(j.Dir, "root"), RunRoot: filepath.Join(j.Dir, "run"), GraphDriverName: "overlay",
	})
	if err != nil {
		return err
	}
	defer func() {
		_, e := store.Shutdown(true)
		err = errors.Join(err, e)
	}()
	dest, err := istorage.Transport.ParseStoreReference(store, "localhost/bench:t")
	if err != nil {
		return err
	}
	src, err := docker.ParseReference("//" + j.reference())
	if err != nil {
		return err
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, policy.Destroy()) }()
	sys := &types.SystemContext{
		SystemRegistriesConfPath: j.Registries, SystemRegistriesConfDirPath: "/nonexistent", BigFilesTemporaryDir: j.Dir,
		BlobInfoCacheDir: filepath.Join(j.Dir, "cache"), AuthFilePath: filepath.Join(j.Dir, "auth.json"),
	}
	keys, err := j.decryption()
	if err != nil {
		return err
	}
	_, err = copy.Image(ctx, policy, dest, src, &copy.Options{SourceCtx: sys, DestinationCtx: sys, OciDecryptConfig: keys})
	return err
}

// skopeo copies to an OCI layout. Its peak is looked at while it runs.
func (j layersJob) skopeo(ctx context.Context) (LayersRun, error) {
	cmd := exec.CommandContext(ctx, "skopeo", "--insecure-policy", "--tmpdir", j.Dir, "copy", "--quiet", "--src-tls-verify=false",
		"docker://"+j.reference(), "oci:"+filepath.Join(j.Dir, "layout")+":t")
	cmd.Stderr = os.Stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return LayersRun{}, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	run := LayersRun{}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			run.Seconds = time.Since(start).Seconds()
			return run, err
		case <-tick.C:
			if peak, err := statusKiB(strconv.Itoa(cmd.Process.Pid), "VmHWM:"); err == nil {
				run.PeakRSSKiB = max(run.PeakRSSKiB, peak)
			}
		}
	}
}

// floor is what one thread needs at the least: the layers are in memory, and
// neither digest nor diff ID is checked.
func (j layersJob) floor(ctx context.Context) (LayersRun, error) {
	runtime.GOMAXPROCS(1)
	keys, err := j.decryption()
	if err != nil {
		return LayersRun{}, err
	}
	var manifest imgspec.Manifest
	blob := func(hex string) ([]byte, error) { return os.ReadFile(filepath.Join(j.Layout, "blobs", "sha256", hex)) }
	data, err := blob(strings.TrimPrefix(j.Digest, "sha256:"))
	if err != nil {
		return LayersRun{}, err
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return LayersRun{}, err
	}
	blobs := make([][]byte, len(manifest.Layers))
	for i, l := range manifest.Layers {
		if blobs[i], err = blob(l.Digest.Encoded()); err != nil {
			return LayersRun{}, err
		}
	}
	return timed(ctx, func(context.Context) error {
		for i, l := range manifest.Layers {
			if err := floorLayer(l, blobs[i], keys, filepath.Join(j.Dir, strconv.Itoa(i))); err != nil {
				return err
			}
		}
		return nil
	})
}

func floorLayer(l imgspec.Descriptor, data []byte, keys *encconfig.DecryptConfig, dir string) error {
	var r io.Reader = bytes.NewReader(data)
	if strings.HasSuffix(l.MediaType, "+encrypted") {
		plain, _, err := ocicrypt.DecryptLayer(keys, r, l, false)
		if err != nil {
			return err
		}
		r = bufio.NewReaderSize(plain, 64<<10)
	}
	if strings.Contains(l.MediaType, "zstd") {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		defer z.Close()
		r = z
	} else {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = z
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return untar(tar.NewReader(r), dir)
}

// untar takes the bench's own archives: files, and directories before them.
func untar(tr *tar.Reader, dir string) error {
	buf := make([]byte, 256<<10)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, hdr.Name)
		if hdr.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, os.FileMode(hdr.Mode))
		} else {
			err = untarFile(path, hdr, tr, buf)
		}
		if err != nil {
			return err
		}
	}
}

func untarFile(path string, hdr *tar.Header, r io.Reader, buf []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(hdr.Mode))
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, buf)
	return errors.Join(err, f.Chown(hdr.Uid, hdr.Gid), f.Chmod(os.FileMode(hdr.Mode)), f.Close(), os.Chtimes(path, hdr.ModTime, hdr.ModTime))
}

// statusKiB reads a size from /proc/PID/status.
func statusKiB(pid, name string) (int64, error) {
	data, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			return strconv.ParseInt(strings.Fields(value)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("process %s has no %s", pid, name)
}
