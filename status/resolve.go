package status

import (
	"encoding/json"
	"slices"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
	"github.com/husk-cri/husk/pkg/imageref"
)

// ResolvedRecord is the husk.v1 image of a record; handlers are the guest-pull
// handlers, all of which it serves.
func ResolvedRecord(rec imageref.Record, handlers []string) *huskv1.Image {
	image := &huskv1.Image{
		ImageId:         rec.ImageID().String(),
		References:      References(rec),
		ManifestDigest:  rec.Manifest.String(),
		Platform:        rec.Platform,
		Layers:          uint32(rec.Layers),
		LayerBytes:      uint64(rec.LayerBytes),
		EncryptedLayers: uint32(rec.EncryptedLayers),
		StoredBytes:     uint64(rec.StoredBytes),
		User:            rec.Image.Config.User,
		RuntimeHandlers: handlers,
		Source:          huskv1.Source_SOURCE_RECORD,
	}
	for _, index := range rec.Indexes {
		image.IndexDigests = append(image.IndexDigests, index.String())
	}
	if image.Platform == "" { // a record of an older Husk
		image.Platform = platform(rec.Image.Platform)
	}
	if pulled := rec.NewestFirst(); len(pulled) > 0 {
		image.PulledAt = pulled[0].PulledAt.UnixNano()
	}
	return image
}

// ResolvedImage is the husk.v1 image of one that CRI-O holds in full, from its
// verbose answer. What that does not say stays empty.
func ResolvedImage(answer *cri.ImageStatusResponse) *huskv1.Image {
	held := answer.GetImage()
	image := &huskv1.Image{
		ImageId:     held.GetId(),
		References:  slices.Concat(held.GetRepoDigests(), held.GetRepoTags()),
		StoredBytes: held.GetSize(),
		User:        held.GetUsername(),
		Source:      huskv1.Source_SOURCE_CRIO,
	}
	var info struct {
		ImageSpec imgspec.Image `json:"imageSpec"`
	}
	// A CRI-O that says it otherwise leaves these fields unknown, no more.
	if err := json.Unmarshal([]byte(answer.GetInfo()[infoKey]), &info); err == nil {
		image.Platform = platform(info.ImageSpec.Platform)
		image.Layers = uint32(len(info.ImageSpec.RootFS.DiffIDs))
		image.User = info.ImageSpec.Config.User
	}
	return image
}

func platform(p imgspec.Platform) string {
	if p.OS == "" || p.Architecture == "" {
		return ""
	}
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}
