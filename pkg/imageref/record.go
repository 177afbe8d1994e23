package imageref

import (
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Record is what Husk knows of one layer-less image: the value that is stored,
// listed, reported to CRI clients and turned into containers. It is a value: a
// holder may keep it, and nobody changes it in place.
type Record struct {
	// StorageID is the ID under which containers/storage keeps the record.
	StorageID StorageID
	// Manifest is the digest of the chosen instance's manifest.
	Manifest ManifestDigest
	// ConfigDigest is the digest of the image config; it gives the image ID.
	ConfigDigest ConfigDigest
	// Platform is that of the chosen instance, "os/architecture[/variant]".
	Platform string
	// Indexes are the indexes that led to the manifest, as far as they are kept.
	Indexes []ManifestDigest
	// References are the names the image was pulled by, newest pull first.
	References []PulledReference
	// Image is the parsed image config.
	Image imgspec.Image
	// StoredBytes is the size of the manifests, config and signatures kept on the host.
	StoredBytes int64
	// Layers, EncryptedLayers and LayerBytes describe the layers the host never
	// reads: how many there are, how many are encrypted, and their compressed
	// size in bytes, all from the manifest.
	Layers          int
	EncryptedLayers int
	LayerBytes      int64
}

// ImageID returns the image ID that CRI clients see.
func (r Record) ImageID() ImageID { return r.ConfigDigest.ImageID() }

// PulledReference is one name by which a record was pulled.
type PulledReference struct {
	// Reference is what was asked for, fully qualified: repo:tag, or repo@digest.
	Reference Reference `json:"reference"`
	// Digest is what the registry resolved it to: the digest of the index where
	// there is one, else of the manifest. repo@Digest is the pinned reference.
	Digest ManifestDigest `json:"digest"`
	// PulledAt is the time of the last successful pull by this reference.
	PulledAt time.Time `json:"pulled_at"`
}

// Pinned returns repo@digest of the reference.
func (p PulledReference) Pinned() Reference {
	pinned, err := p.Reference.Pin(p.Digest)
	if err != nil { // cannot happen for a parsed reference and digest
		return Reference{}
	}
	return pinned
}
