package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is an OCI image layout directory (OCI image spec, image-layout.md).
type layout struct{ dir string }

func openLayout(dir string) (*layout, error) {
	l := &layout{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, imgspec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("create layout: %w", err)
	}
	data, err := json.Marshal(imgspec.ImageLayout{Version: imgspec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	return l, os.WriteFile(filepath.Join(dir, imgspec.ImageLayoutFile), data, 0o644)
}

func (l *layout) blobPath(d digest.Digest) string {
	return filepath.Join(l.dir, imgspec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// put stores what write produces and returns its descriptor.
func (l *layout) put(mediaType string, write func(io.Writer) error) (desc imgspec.Descriptor, err error) {
	f, err := os.CreateTemp(filepath.Join(l.dir, imgspec.ImageBlobsDir), ".blob-")
	if err != nil {
		return desc, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	digester := digest.SHA256.Digester()
	if err := write(io.MultiWriter(f, digester.Hash())); err != nil {
		return desc, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return desc, err
	}
	if err := f.Chmod(0o644); err != nil {
		return desc, err
	}
	if err := f.Close(); err != nil {
		return desc, err
	}
	desc = imgspec.Descriptor{MediaType: mediaType, Digest: digester.Digest(), Size: size}
	return desc, os.Rename(f.Name(), l.blobPath(desc.Digest))
}

func (l *layout) putBytes(mediaType string, data []byte) (imgspec.Descriptor, error) {
	return l.put(mediaType, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(data))
		return err
	})
}

func (l *layout) putJSON(mediaType string, v any) (imgspec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return imgspec.Descriptor{}, err
	}
	return l.putBytes(mediaType, data)
}

func (l *layout) getJSON(d digest.Digest, v any) error {
	data, err := os.ReadFile(l.blobPath(d))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func (l *layout) index() (imgspec.Index, error) {
	index := imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex}
	data, err := os.ReadFile(filepath.Join(l.dir, imgspec.ImageIndexFile))
	if errors.Is(err, os.ErrNotExist) {
		return index, nil
	}
	if err != nil {
		return index, err
	}
	return index, json.Unmarshal(data, &index)
}

func (l *layout) find(tag string) (imgspec.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return imgspec.Descriptor{}, err
	}
	for _, d := range index.Manifests {
		if d.Annotations[imgspec.AnnotationRefName] == tag {
			return d, nil
		}
	}
	return imgspec.Descriptor{}, errNoTag
}

// tag makes the tag point to desc.
func (l *layout) tag(tag string, desc imgspec.Descriptor) error {
	index, err := l.index()
	if err != nil {
		return err
	}
	desc.Annotations = map[string]string{imgspec.AnnotationRefName: tag}
	manifests := []imgspec.Descriptor{desc}
	for _, d := range index.Manifests {
		if d.Annotations[imgspec.AnnotationRefName] != tag {
			manifests = append(manifests, d)
		}
	}
	index.Manifests = manifests
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, imgspec.ImageIndexFile), data, 0o644)
}

func isEncrypted(mediaType string) bool { return strings.HasSuffix(mediaType, "+encrypted") }
