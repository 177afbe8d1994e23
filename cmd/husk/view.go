package main

import (
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/imageref"
)

// imageView is a record as the commands show it to scripts. Its names, in JSON and in
// templates, are an interface: they may be added to, not changed.
type imageView struct {
	ImageID         string          `json:"image_id"`
	ManifestDigest  string          `json:"manifest_digest"`
	IndexDigests    []string        `json:"index_digests"`
	StorageID       string          `json:"storage_id"`
	Platform        string          `json:"platform"`
	References      []referenceView `json:"references"`
	User            string          `json:"user"`
	Layers          int             `json:"layers"`
	EncryptedLayers int             `json:"encrypted_layers"`
	StoredBytes     int64           `json:"stored_bytes"`
	LayerBytes      int64           `json:"layer_bytes"`
	Config          *imgspec.Image  `json:"config,omitempty"`
}

type referenceView struct {
	Reference string    `json:"reference"`
	Pinned    string    `json:"pinned"`
	PulledAt  time.Time `json:"pulled_at"`
}

// newImageView is a record without its image config, which only inspect shows.
func newImageView(r imageref.Record) imageView {
	v := imageView{
		ImageID: r.ImageID().String(), ManifestDigest: r.Manifest.String(), StorageID: r.StorageID.String(), Platform: r.Platform,
		IndexDigests: make([]string, 0, len(r.Indexes)), References: make([]referenceView, 0, len(r.References)),
		User: r.Image.Config.User, Layers: r.Layers, EncryptedLayers: r.EncryptedLayers,
		StoredBytes: r.StoredBytes, LayerBytes: r.LayerBytes,
	}
	for _, d := range r.Indexes {
		v.IndexDigests = append(v.IndexDigests, d.String())
	}
	for _, p := range r.References {
		v.References = append(v.References, referenceView{p.Reference.String(), p.Pinned().String(), p.PulledAt})
	}
	return v
}
