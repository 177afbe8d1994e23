package manifestonly

import (
	"encoding/json"
	"fmt"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/imageref"
)

// Blob is content with the digest it was checked against.
type Blob struct {
	Digest imageref.ManifestDigest `json:"digest"`
	Bytes  []byte                  `json:"bytes"`
}

// Image is a checked image as [Pull] hands it to a [Writer]: every byte has the
// digest that names it, and the policy has accepted it. Its JSON has all of it, for
// a child process that fetches on behalf of its parent.
type Image struct {
	// Pulled is the name by which it was pulled, what that resolved to, and when.
	Pulled imageref.PulledReference `json:"pulled"`
	// Indexes lead from the reference to the manifest, outermost first; empty
	// when the reference names the manifest itself.
	Indexes []Blob `json:"indexes,omitempty"`
	// Manifest is the manifest of the chosen instance.
	Manifest Blob `json:"manifest"`
	// ConfigDigest and Config are the image config, and Parsed is what it says.
	ConfigDigest imageref.ConfigDigest `json:"config_digest"`
	Config       []byte                `json:"config"`
	Parsed       imgspec.Image         `json:"-"`
	// Signatures of the manifest, as containers/image stores them; may be empty.
	Signatures [][]byte `json:"signatures,omitempty"`
	// Layers, EncryptedLayers and LayerBytes are as in imageref.Record.
	Layers          int   `json:"layers"`
	EncryptedLayers int   `json:"encrypted_layers"`
	LayerBytes      int64 `json:"layer_bytes"`
}

// UnmarshalJSON reads what encoding/json writes of an Image, and reads Parsed from
// the config: a second copy of it could say something else, and would not keep the
// difference between an empty list and none.
func (img *Image) UnmarshalJSON(data []byte) error {
	type plain Image // without this method
	var p plain
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	var err error
	if p.Parsed, err = ParseConfig(p.Config); err != nil {
		return fmt.Errorf("read the config of a fetched image: %w", err)
	}
	*img = Image(p)
	return nil
}

// ParseConfig reads an image config, all but its history: nobody asks for that, and of
// all fields it takes the most memory (20 times its text), for as long as the record
// is there.
func ParseConfig(config []byte) (imgspec.Image, error) {
	var parsed struct {
		imgspec.Image
		History ignored `json:"history"`
	}
	err := json.Unmarshal(config, &parsed)
	return parsed.Image, err
}

// ignored is any JSON value.
type ignored struct{}

// UnmarshalJSON implements json.Unmarshaler.
func (*ignored) UnmarshalJSON([]byte) error { return nil }

// top returns the digest that the reference was resolved to.
func (img Image) top() imageref.ManifestDigest {
	if len(img.Indexes) > 0 {
		return img.Indexes[0].Digest
	}
	return img.Manifest.Digest
}

// Record returns the record that img makes when it is stored alone: one
// reference, and the size of what is kept.
func (img Image) Record() imageref.Record {
	size := int64(len(img.Manifest.Bytes) + len(img.Config))
	for _, index := range img.Indexes {
		size += int64(len(index.Bytes))
	}
	for _, sig := range img.Signatures {
		size += int64(len(sig))
	}
	var indexes []imageref.ManifestDigest
	for _, index := range img.Indexes {
		indexes = append(indexes, index.Digest)
	}
	return imageref.Record{
		StorageID:       imageref.RecordID(img.Manifest.Digest),
		Manifest:        img.Manifest.Digest,
		ConfigDigest:    img.ConfigDigest,
		Platform:        PlatformOf(img.Parsed),
		Indexes:         indexes,
		References:      []imageref.PulledReference{img.Pulled},
		Image:           img.Parsed,
		StoredBytes:     size,
		Layers:          img.Layers,
		EncryptedLayers: img.EncryptedLayers,
		LayerBytes:      img.LayerBytes,
	}
}

// PlatformOf returns the platform that a config is for, "os/architecture[/variant]";
// "" when it does not say.
func PlatformOf(config imgspec.Image) string {
	if config.OS == "" || config.Architecture == "" {
		return ""
	}
	return strings.TrimSuffix(config.OS+"/"+config.Architecture+"/"+config.Variant, "/")
}
