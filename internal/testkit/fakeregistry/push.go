package fakeregistry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of docker schema 2.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
	DockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerSchema1  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// Image says what image to push. The zero value is an OCI image for linux/amd64
// without layers.
type Image struct {
	// Config of the image; OS and Architecture default to linux/amd64.
	Config imgspec.Image
	// Layers are the blobs. They need not be real layers: nobody reads them.
	Layers [][]byte
	// Encrypted gives the layers the media type of encrypted ones.
	Encrypted bool
	// Docker makes it docker schema 2 instead of OCI.
	Docker bool
	// Edit, where set, changes the manifest before it is pushed.
	Edit func(*imgspec.Manifest)
}

// Pushed says what was pushed.
type Pushed struct {
	// Reference is the tag, "host/repository:tag"; Repository is without the tag.
	Reference, Repository string
	// Manifest is what the registry serves, of the given Digest and MediaType.
	Manifest  []byte
	Digest    digest.Digest
	MediaType string
	// Config and ConfigDigest are the image config; empty for an index.
	Config       []byte
	ConfigDigest digest.Digest
	// Layers are the digests of the layers.
	Layers []digest.Digest
}

// Push pushes an image to the repository under the tag. Pushing is not recorded.
func (r *Registry) Push(t TB, repository, tag string, image Image) Pushed {
	t.Helper()
	if image.Config.OS == "" {
		image.Config.OS = "linux"
	}
	if image.Config.Architecture == "" {
		image.Config.Architecture = "amd64"
	}
	p := Pushed{Repository: r.Host() + "/" + repository, MediaType: imgspec.MediaTypeImageManifest}
	configType, layerType := imgspec.MediaTypeImageConfig, imgspec.MediaTypeImageLayerGzip
	if image.Docker {
		p.MediaType, configType, layerType = DockerManifest, DockerConfig, DockerLayer
	}
	if image.Encrypted {
		layerType += "+encrypted"
	}
	image.Config.RootFS.Type = "layers"
	m := imgspec.Manifest{MediaType: p.MediaType}
	m.SchemaVersion = 2
	for _, layer := range image.Layers {
		d := r.PushBlob(t, repository, layer)
		image.Config.RootFS.DiffIDs = append(image.Config.RootFS.DiffIDs, d)
		p.Layers = append(p.Layers, d)
		m.Layers = append(m.Layers, imgspec.Descriptor{MediaType: layerType, Digest: d, Size: int64(len(layer))})
	}
	p.Config = marshal(t, image.Config)
	p.ConfigDigest = r.PushBlob(t, repository, p.Config)
	m.Config = imgspec.Descriptor{MediaType: configType, Digest: p.ConfigDigest, Size: int64(len(p.Config))}
	if image.Edit != nil {
		image.Edit(&m)
	}
	p.Manifest = marshal(t, m)
	p.Digest = r.PushManifest(t, repository, tag, p.MediaType, p.Manifest)
	p.Reference = p.Repository + ":" + tag
	return p
}

// PushIndex pushes an index over images that were pushed to the same repository.
// A nil platform leaves the entry without one.
func (r *Registry) PushIndex(t TB, repository, tag string, entries ...imgspec.Descriptor) Pushed {
	t.Helper()
	index := imgspec.Index{MediaType: imgspec.MediaTypeImageIndex, Manifests: entries}
	index.SchemaVersion = 2
	p := Pushed{Repository: r.Host() + "/" + repository, MediaType: index.MediaType, Manifest: marshal(t, index)}
	p.Digest = r.PushManifest(t, repository, tag, p.MediaType, p.Manifest)
	p.Reference = p.Repository + ":" + tag
	return p
}

// Entry is p as an index lists it; platform "" is none, else "os/arch[/variant]".
func (p Pushed) Entry(os, arch, variant string) imgspec.Descriptor {
	d := imgspec.Descriptor{MediaType: p.MediaType, Digest: p.Digest, Size: int64(len(p.Manifest))}
	if os != "" {
		d.Platform = &imgspec.Platform{OS: os, Architecture: arch, Variant: variant}
	}
	return d
}

// PushBlob pushes a blob.
func (r *Registry) PushBlob(t TB, repository string, blob []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(blob)
	query := url.Values{"digest": {d.String()}}
	r.push(t, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?%s", repository, query.Encode()), "application/octet-stream", blob)
	return d
}

// PushManifest pushes any bytes as a manifest, under a tag or a digest.
func (r *Registry) PushManifest(t TB, repository, reference, mediaType string, body []byte) digest.Digest {
	t.Helper()
	r.push(t, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repository, reference), mediaType, body)
	return digest.FromBytes(body)
}

// push goes to the image store behind the recording front.
func (r *Registry) push(t TB, method, target, mediaType string, body []byte) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, target, bytes.NewReader(body))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.images.ServeHTTP(w, req)
	if w.Code/100 != 2 {
		t.Fatalf("push %s: %d %s", target, w.Code, w.Body)
	}
}

func marshal(t TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return b
}
