package cstore

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containers/storage"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/imageref"
)

// version is the version of the JSON under "husk". A record of another version
// is left alone: a newer Husk wrote it.
const version = 1

// metadata is storage.Image.Metadata. The first two fields are those of
// containers/image's storage transport, which ignores the third.
type metadata struct {
	SignatureSizes  []int                   `json:"signature-sizes,omitempty"`
	SignaturesSizes map[digest.Digest][]int `json:"signatures-sizes,omitempty"`
	Husk            *husk                   `json:"husk,omitempty"`
}

// husk is Husk's own part: what a record says beyond its big data. Its presence
// is what makes an image of containers/storage a layer-less record.
type husk struct {
	Version         int         `json:"version"`
	Manifest        string      `json:"manifest"`
	Indexes         []string    `json:"indexes,omitempty"`
	Config          string      `json:"config"`
	Platform        string      `json:"platform,omitempty"`
	References      []reference `json:"references"`
	Layers          int         `json:"layers"`
	EncryptedLayers int         `json:"encrypted_layers"`
	LayerBytes      int64       `json:"layer_bytes"`
}

type reference struct {
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"`
	PulledAt  time.Time `json:"pulled_at"`
}

// parseMetadata returns nil, nil for an image that is not Husk's.
func parseMetadata(img *storage.Image) (*metadata, error) {
	if !strings.Contains(img.Metadata, `"husk"`) {
		return nil, nil
	}
	var m metadata
	if err := json.Unmarshal([]byte(img.Metadata), &m); err != nil {
		return nil, fmt.Errorf("metadata of image %s: %w", img.ID, err)
	}
	// The ID is derived from the manifest, so an image that merely carries the
	// metadata (a copy under another ID, say) is not taken for a record.
	if m.Husk == nil || m.Husk.Version != version {
		return nil, nil
	}
	d, err := imageref.ParseManifestDigest(m.Husk.Manifest)
	if err != nil {
		return nil, fmt.Errorf("metadata of image %s: %w", img.ID, err)
	}
	if imageref.RecordID(d).String() != img.ID {
		return nil, nil
	}
	return &m, nil
}

func (m metadata) encode() (string, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encode record metadata: %w", err)
	}
	return string(b), nil
}

func encodeReferences(refs []imageref.PulledReference) []reference {
	out := make([]reference, 0, len(refs))
	for _, r := range refs {
		out = append(out, reference{r.Reference.String(), r.Digest.String(), r.PulledAt.UTC()})
	}
	return out
}

func (h husk) references() ([]imageref.PulledReference, error) {
	out := make([]imageref.PulledReference, 0, len(h.References))
	for _, r := range h.References {
		ref, err := imageref.ParseReference(r.Reference)
		if err != nil {
			return nil, err
		}
		d, err := imageref.ParseManifestDigest(r.Digest)
		if err != nil {
			return nil, err
		}
		out = append(out, imageref.PulledReference{Reference: ref, Digest: d, PulledAt: r.PulledAt})
	}
	return out, nil
}

// Names of big data items, as containers/image's storage transport reads them.
const (
	signaturesKey   = "signatures"
	signaturePrefix = "signature-"
	manifestPrefix  = storage.ImageDigestManifestBigDataNamePrefix + "-"
)

// item is one big data item of a record.
type item struct {
	key    string
	data   []byte
	digest digest.Digest
}

// items returns the big data of img in the order to write it: what a reader of
// containers/storage cannot do without comes first. If the writer dies half
// way, CRI-O then fails on as little as possible.
func items(img manifestonly.Image) []item {
	manifest := img.Manifest.Digest.Digest()
	list := []item{
		{storage.ImageDigestBigDataKey, img.Manifest.Bytes, manifest},
		{img.ConfigDigest.String(), img.Config, img.ConfigDigest.Digest()},
		{manifestPrefix + manifest.String(), img.Manifest.Bytes, manifest},
	}
	for _, index := range img.Indexes {
		d := index.Digest.Digest()
		list = append(list, item{manifestPrefix + d.String(), index.Bytes, d})
	}
	if blob := join(img.Signatures); len(blob) > 0 {
		d := digest.FromBytes(blob)
		list = append(list, item{signaturesKey, blob, d}, item{signaturePrefix + manifest.Encoded(), blob, d})
	}
	return list
}

// expected returns the digest that each big data item of a record must have, as
// far as its metadata says; signatures are checked by size.
func (h husk) expected() map[string]string {
	want := map[string]string{
		storage.ImageDigestBigDataKey: h.Manifest,
		manifestPrefix + h.Manifest:   h.Manifest,
		h.Config:                      h.Config,
	}
	for _, index := range h.Indexes {
		want[manifestPrefix+index] = index
	}
	return want
}

// halfMade says what is missing from a record that its writer did not finish;
// nil means that it is complete.
func (m metadata) halfMade(img *storage.Image) error {
	for key, want := range m.Husk.expected() {
		if got := img.BigDataDigests[key]; got.String() != want {
			return fmt.Errorf("record %s is half made: %s has the digest %q", img.ID, key, got)
		}
	}
	signatures := map[string][]int{signaturesKey: m.SignatureSizes}
	for d, sizes := range m.SignaturesSizes {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("record %s: signatures of %q: %w", img.ID, d, err)
		}
		signatures[signaturePrefix+d.Encoded()] = sizes
	}
	for key, sizes := range signatures {
		total := int64(0)
		for _, size := range sizes {
			total += int64(size)
		}
		if total > 0 && img.BigDataSizes[key] != total {
			return fmt.Errorf("record %s is half made: %s has %d bytes, not %d", img.ID, key, img.BigDataSizes[key], total)
		}
	}
	return nil
}

func join(signatures [][]byte) []byte {
	var blob []byte
	for _, s := range signatures {
		blob = append(blob, s...)
	}
	return blob
}

func sizes(signatures [][]byte) []int {
	list := make([]int, 0, len(signatures))
	for _, s := range signatures {
		list = append(list, len(s))
	}
	return list
}

// isSignature reports whether the big data item of this name holds signatures.
func isSignature(key string) bool {
	return key == signaturesKey || strings.HasPrefix(key, signaturePrefix)
}
