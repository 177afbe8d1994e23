// Package images makes container images for tests, without a network: from
// Debian's static busybox, from given files, or from raw tar entries. They are
// written as OCI image layouts, plain or encrypted, for one platform or several.
//
// The same [Spec] gives the same bytes each time, except for encrypted layers,
// whose keys are random.
package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DefaultBusybox is where Debian's busybox-static puts its binary.
const DefaultBusybox = "/bin/busybox"

// Epoch is the modification time of every file and the creation time of every image.
var Epoch = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// Compression is how a layer's tar stream is stored.
type Compression string

// The compressions of the OCI image spec. The zero value is Gzip.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
	None Compression = "none"
)

// File is one regular file of a layer.
type File struct {
	// Path is absolute in the image. Missing parent directories get entries.
	Path string
	// Content is the file's content.
	Content []byte
	// Mode is the permission bits; zero means 0644.
	Mode int64
	// UID and GID own the file.
	UID, GID int
}

// Layer is one layer. All three parts may be used together.
type Layer struct {
	// Files are written in order.
	Files []File
	// Random is the size in bytes of a file of incompressible bytes, /random-N;
	// zero means none.
	Random int64
	// Tar, if set, writes any further entries, also hostile ones.
	Tar func(*tar.Writer) error
}

// Spec says what to build. The zero value is an image without layers.
type Spec struct {
	// Busybox is the path of a static busybox; it becomes the first layer, with
	// links for common applets, Passwd and Group. "" means no such layer.
	Busybox string
	// Passwd and Group are the contents of /etc/passwd and /etc/group in the
	// busybox layer; "" means one entry for root.
	Passwd, Group string
	// Layers follow the busybox layer, bottom first.
	Layers []Layer
	// Config is the image config's "config" object.
	Config imgspec.ImageConfig
	// Platforms lists the instances. None means this machine's platform alone;
	// two or more make an index. Each instance of an index has a layer of its own
	// with the file /platform.
	Platforms []imgspec.Platform
	// Compression is that of all layers; "" means Gzip.
	Compression Compression
	// Seed varies the random filler.
	Seed uint64
	// Encrypt, if set, encrypts layers.
	Encrypt *Encryption
}

// Build writes the image to the layout at dir under the given tag, creating
// the layout if there is none and replacing an image with the same tag.
func Build(ctx context.Context, dir, tag string, spec Spec) (Summary, error) {
	if spec.Encrypt == nil {
		if err := buildPlain(dir, tag, spec); err != nil {
			return Summary{}, fmt.Errorf("build image %s:%s: %w", dir, tag, err)
		}
		return Inspect(dir, tag)
	}
	plain, err := os.MkdirTemp("", "mkimage-")
	if err != nil {
		return Summary{}, fmt.Errorf("build image: %w", err)
	}
	defer func() { _ = os.RemoveAll(plain) }()
	if err := buildPlain(plain, tag, spec); err != nil {
		return Summary{}, fmt.Errorf("build image %s:%s: %w", dir, tag, err)
	}
	if err := encrypt(ctx, plain, dir, tag, *spec.Encrypt); err != nil {
		return Summary{}, fmt.Errorf("build image %s:%s: %w", dir, tag, err)
	}
	return Inspect(dir, tag)
}

// BuildArtifact writes an OCI artifact that is no image: an empty config and
// one blob of the given content.
func BuildArtifact(dir, tag, artifactType string, content []byte) (Summary, error) {
	l, err := openLayout(dir)
	if err != nil {
		return Summary{}, err
	}
	blob, err := l.putBytes(artifactType, content)
	if err != nil {
		return Summary{}, err
	}
	config, err := l.putBytes(imgspec.MediaTypeEmptyJSON, imgspec.DescriptorEmptyJSON.Data)
	if err != nil {
		return Summary{}, err
	}
	desc, err := l.putJSON(imgspec.MediaTypeImageManifest, imgspec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest,
		ArtifactType: artifactType, Config: config, Layers: []imgspec.Descriptor{blob},
	})
	if err != nil {
		return Summary{}, err
	}
	if err := l.tag(tag, desc); err != nil {
		return Summary{}, err
	}
	return Inspect(dir, tag)
}

func buildPlain(dir, tag string, spec Spec) error {
	l, err := openLayout(dir)
	if err != nil {
		return err
	}
	platforms := spec.Platforms
	if len(platforms) == 0 {
		platforms = []imgspec.Platform{{OS: "linux", Architecture: runtime.GOARCH}}
	}
	index := imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex}
	for _, p := range platforms {
		desc, err := buildInstance(l, spec, p, len(platforms) > 1)
		if err != nil {
			return err
		}
		desc.Platform = &p
		index.Manifests = append(index.Manifests, desc)
	}
	top := index.Manifests[0]
	if len(platforms) > 1 {
		if top, err = l.putJSON(imgspec.MediaTypeImageIndex, index); err != nil {
			return err
		}
	}
	return l.tag(tag, top)
}

func buildInstance(l *layout, spec Spec, p imgspec.Platform, several bool) (imgspec.Descriptor, error) {
	layers, err := allLayers(spec, p, several)
	if err != nil {
		return imgspec.Descriptor{}, err
	}
	manifest := imgspec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest,
		Layers: []imgspec.Descriptor{},
	}
	created := Epoch
	config := imgspec.Image{
		Created: &created, Platform: p, Config: spec.Config,
		RootFS: imgspec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	for i, layer := range layers {
		desc, diffID, err := l.putLayer(layer, spec.Compression, spec.Seed+uint64(i))
		if err != nil {
			return imgspec.Descriptor{}, fmt.Errorf("layer %d: %w", i, err)
		}
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, imgspec.History{Created: &created, CreatedBy: fmt.Sprintf("mkimage layer %d", i)})
	}
	if manifest.Config, err = l.putJSON(imgspec.MediaTypeImageConfig, config); err != nil {
		return imgspec.Descriptor{}, err
	}
	return l.putJSON(imgspec.MediaTypeImageManifest, manifest)
}

func allLayers(spec Spec, p imgspec.Platform, several bool) ([]Layer, error) {
	var layers []Layer
	if spec.Busybox != "" {
		base, err := busyboxLayer(spec)
		if err != nil {
			return nil, err
		}
		layers = append(layers, base)
	}
	layers = append(layers, spec.Layers...)
	if several {
		layers = append(layers, Layer{Files: []File{{Path: "/platform", Content: []byte(p.OS + "/" + p.Architecture + "\n")}}})
	}
	return layers, nil
}

// Summary describes a built image, as read back from the layout.
type Summary struct {
	// Digest is what the tag points to: the manifest, or the index.
	Digest digest.Digest `json:"digest"`
	// MediaType is that of Digest.
	MediaType string `json:"mediaType"`
	// Instances has one entry per platform.
	Instances []Instance `json:"instances"`
}

// Instance is one manifest of a [Summary].
type Instance struct {
	Platform string         `json:"platform,omitempty"`
	Manifest digest.Digest  `json:"manifestDigest"`
	Config   digest.Digest  `json:"configDigest"`
	Layers   []LayerSummary `json:"layers"`
	// Encrypted counts the encrypted layers.
	Encrypted int `json:"encrypted"`
	// Bytes is the sum of the stored sizes of the layers.
	Bytes int64 `json:"layerBytes"`
}

// LayerSummary is one layer of an [Instance]; Size is in bytes as stored.
type LayerSummary struct {
	Digest    digest.Digest `json:"digest"`
	DiffID    digest.Digest `json:"diffID,omitempty"`
	Size      int64         `json:"size"`
	MediaType string        `json:"mediaType"`
}

// Inspect reads the image with the given tag back from the layout at dir.
func Inspect(dir, tag string) (Summary, error) {
	l := &layout{dir: dir}
	top, err := l.find(tag)
	if err != nil {
		return Summary{}, fmt.Errorf("inspect image %s:%s: %w", dir, tag, err)
	}
	s := Summary{Digest: top.Digest, MediaType: top.MediaType}
	manifests := []imgspec.Descriptor{top}
	if top.MediaType == imgspec.MediaTypeImageIndex {
		var index imgspec.Index
		if err := l.getJSON(top.Digest, &index); err != nil {
			return Summary{}, err
		}
		manifests = index.Manifests
	}
	for _, m := range manifests {
		instance, err := l.inspectInstance(m)
		if err != nil {
			return Summary{}, fmt.Errorf("inspect image %s:%s: %w", dir, tag, err)
		}
		s.Instances = append(s.Instances, instance)
	}
	return s, nil
}

func (l *layout) inspectInstance(desc imgspec.Descriptor) (Instance, error) {
	var manifest imgspec.Manifest
	if err := l.getJSON(desc.Digest, &manifest); err != nil {
		return Instance{}, err
	}
	var config imgspec.Image
	if err := l.getJSON(manifest.Config.Digest, &config); err != nil {
		return Instance{}, err
	}
	instance := Instance{Manifest: desc.Digest, Config: manifest.Config.Digest, Layers: []LayerSummary{}}
	if config.Architecture != "" {
		instance.Platform = config.OS + "/" + config.Architecture
	}
	for i, d := range manifest.Layers {
		layer := LayerSummary{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
		if i < len(config.RootFS.DiffIDs) {
			layer.DiffID = config.RootFS.DiffIDs[i]
		}
		if isEncrypted(d.MediaType) {
			instance.Encrypted++
		}
		instance.Bytes += d.Size
		instance.Layers = append(instance.Layers, layer)
	}
	return instance, nil
}

// WriteJSON writes s to path, or to standard output when path is "".
func (s Summary) WriteJSON(path string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode summary: %w", err)
	}
	data = append(data, '\n')
	if path == "" {
		_, err = os.Stdout.Write(data)
	} else {
		err = os.WriteFile(path, data, 0o644)
	}
	return err
}

var errNoTag = errors.New("no image with this tag in the layout")
