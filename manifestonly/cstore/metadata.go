package cstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containers/storage"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/imageref"
)

// version is the version of the JSON under "husk"; docs/records.md describes it. A
// record of another version is left alone: a newer Husk wrote it.
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

// decode reads the text of storage.Image.Metadata. It returns nil, nil for what has
// no part of Husk's. The version is the caller's to look at.
func decode(text string) (*metadata, error) {
	if !strings.Contains(text, `"husk"`) {
		return nil, nil
	}
	var m metadata
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return nil, err
	}
	if m.Husk == nil {
		return nil, nil
	}
	return &m, nil
}

// parseMetadata returns nil, nil for an image that is no record of this version.
func parseMetadata(img *storage.Image) (*metadata, error) {
	m, err := decode(img.Metadata)
	if err != nil {
		return nil, fmt.Errorf("metadata of image %s: %w", img.ID, err)
	}
	if m == nil || m.Husk.Version != version {
		return nil, nil
	}
	d, err := imageref.ParseManifestDigest(m.Husk.Manifest)
	if err != nil {
		return nil, fmt.Errorf("metadata of image %s: %w", img.ID, err)
	}
	// The ID is derived from the manifest, so an image that merely carries the
	// metadata (a copy under another ID, say) is not taken for a record.
	if imageref.RecordID(d).String() != img.ID {
		return nil, nil
	}
	return m, nil
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

// references returns the names that can be read, and an error for the others.
func (h husk) references() ([]imageref.PulledReference, error) {
	out := make([]imageref.PulledReference, 0, len(h.References))
	var failed []error
	for _, r := range h.References {
		p, err := r.decode()
		if err != nil {
			failed = append(failed, err)
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(failed...)
}

func (r reference) decode() (imageref.PulledReference, error) {
	ref, err := imageref.ParseReference(r.Reference)
	if err != nil {
		return imageref.PulledReference{}, err
	}
	d, err := imageref.ParseManifestDigest(r.Digest)
	if err != nil {
		return imageref.PulledReference{}, err
	}
	at := r.PulledAt.UTC()
	if at.Year() < 1 || at.Year() > 9999 { // it could be read, and never written again
		return imageref.PulledReference{}, fmt.Errorf("pulled in the year %d", at.Year())
	}
	return imageref.PulledReference{Reference: ref, Digest: d, PulledAt: at}, nil
}

// record returns what the metadata says of a record. Names that cannot be read
// are left out; a record without a name is none.
func (h husk) record() (imageref.Record, error) {
	r := imageref.Record{
		Platform: h.Platform, Layers: h.Layers, EncryptedLayers: h.EncryptedLayers, LayerBytes: h.LayerBytes,
	}
	var err error
	if r.Manifest, err = imageref.ParseManifestDigest(h.Manifest); err != nil {
		return imageref.Record{}, err
	}
	r.StorageID = imageref.RecordID(r.Manifest)
	if r.ConfigDigest, err = imageref.ParseConfigDigest(h.Config); err != nil {
		return imageref.Record{}, err
	}
	for _, index := range h.Indexes {
		d, err := imageref.ParseManifestDigest(index)
		if err != nil {
			return imageref.Record{}, err
		}
		r.Indexes = append(r.Indexes, d)
	}
	if r.References, err = h.references(); len(r.References) == 0 {
		return imageref.Record{}, fmt.Errorf("no name can be read: %w", errors.Join(err, errNameless))
	}
	return r, nil
}

var errNameless = errors.New("the record has no name")

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
			if size < 0 {
				return fmt.Errorf("record %s: %s has a signature of %d bytes", img.ID, key, size)
			}
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
