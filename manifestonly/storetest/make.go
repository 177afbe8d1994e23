package storetest

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Spec says what image [Make] makes. Equal Configs give equal image IDs, equal
// Configs and Salts equal manifests, and equal Specs equal images.
type Spec struct {
	// Reference it was pulled by.
	Reference string
	// Config of the image.
	Config imgspec.ImageConfig
	// Salt tells manifests with the same config apart.
	Salt string
	// Index puts an index with this annotation over the manifest; "" for none.
	Index string
	// Layers of the manifest, which nobody has.
	Layers int
	// Encrypted marks the layers as encrypted.
	Encrypted bool
	// Signatures of the manifest, in the format of containers/image.
	Signatures [][]byte
	// PulledAt defaults to a fixed time.
	PulledAt time.Time
}

// Ref parses a reference.
func Ref(t testing.TB, s string) imageref.Reference {
	t.Helper()
	ref, err := imageref.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// Digest parses a manifest digest.
func Digest(t testing.TB, s string) imageref.ManifestDigest {
	t.Helper()
	d, err := imageref.ParseManifestDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Make makes a checked image as a pull would.
func Make(t testing.TB, spec Spec) manifestonly.Image {
	t.Helper()
	if spec.PulledAt.IsZero() {
		spec.PulledAt = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	}
	parsed := imgspec.Image{
		Platform: imgspec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   spec.Config,
		RootFS:   imgspec.RootFS{Type: "layers"},
	}
	layerType := imgspec.MediaTypeImageLayerGzip
	img := manifestonly.Image{Layers: spec.Layers, Signatures: spec.Signatures}
	if spec.Encrypted {
		layerType += "+encrypted"
		img.EncryptedLayers = spec.Layers
	}
	m := imgspec.Manifest{MediaType: imgspec.MediaTypeImageManifest, Annotations: map[string]string{"salt": spec.Salt}}
	m.SchemaVersion = 2
	for i := range spec.Layers {
		d := digest.FromBytes([]byte{byte(i)})
		parsed.RootFS.DiffIDs = append(parsed.RootFS.DiffIDs, d)
		m.Layers = append(m.Layers, imgspec.Descriptor{MediaType: layerType, Digest: d, Size: 1000})
		img.LayerBytes += 1000
	}
	img.Config = marshal(t, parsed)
	// As a pull does: what is stored is what the bytes say.
	if err := json.Unmarshal(img.Config, &img.Parsed); err != nil {
		t.Fatal(err)
	}
	var err error
	config := digest.FromBytes(img.Config)
	if img.ConfigDigest, err = imageref.ParseConfigDigest(config.String()); err != nil {
		t.Fatal(err)
	}
	m.Config = imgspec.Descriptor{MediaType: imgspec.MediaTypeImageConfig, Digest: config, Size: int64(len(img.Config))}
	img.Manifest = blob(t, marshal(t, m))
	top := img.Manifest.Digest
	if spec.Index != "" {
		index := imgspec.Index{MediaType: imgspec.MediaTypeImageIndex, Annotations: map[string]string{"name": spec.Index}}
		index.SchemaVersion = 2
		index.Manifests = []imgspec.Descriptor{{
			MediaType: m.MediaType, Digest: img.Manifest.Digest.Digest(), Size: int64(len(img.Manifest.Bytes)), Platform: &parsed.Platform,
		}}
		img.Indexes = []manifestonly.Blob{blob(t, marshal(t, index))}
		top = img.Indexes[0].Digest
	}
	img.Pulled = imageref.PulledReference{Reference: Ref(t, spec.Reference), Digest: top, PulledAt: spec.PulledAt}
	return img
}

func blob(t testing.TB, b []byte) manifestonly.Blob {
	t.Helper()
	return manifestonly.Blob{Digest: Digest(t, digest.FromBytes(b).String()), Bytes: b}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
