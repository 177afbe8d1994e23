// Package status turns layer-less records into the CRI images and container
// statuses that clients should see. It is pure: it asks nobody.
package status

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// infoKey is the key of CRI-O's own verbose answers.
const infoKey = "info"

// Image is the CRI image of a record. handler is reported as the runtime handler
// that holds it, so that no client takes it for an image with layers. The size is
// that of what the host stores.
func Image(rec imageref.Record, handler string) *cri.Image {
	image := &cri.Image{
		Id:          rec.ImageID().String(),
		RepoTags:    tags(rec),
		RepoDigests: digests(rec),
		Size:        uint64(max(rec.StoredBytes, 1)), // CRI: must be > 0
		Spec:        &cri.ImageSpec{RuntimeHandler: handler},
	}
	uid, name := User(rec.Image.Config)
	image.Username = name
	if uid != nil {
		image.Uid = &cri.Int64Value{Value: *uid}
	}
	return image
}

// User is the image's user as CRI reports it: a uid when it is a number, else a
// name, without the group; neither for an image that names no user.
func User(config imgspec.ImageConfig) (uid *int64, name string) {
	user, _, _ := strings.Cut(config.User, ":")
	if user == "" {
		return nil, ""
	}
	if id, err := strconv.ParseInt(user, 10, 64); err == nil {
		return &id, ""
	}
	return nil, user
}

// References lists the names of a record, most representative first: pinned
// references before tags, newest pull first.
func References(rec imageref.Record) []string {
	return slices.Concat(digests(rec), tags(rec))
}

func tags(rec imageref.Record) []string {
	var names []string
	for _, p := range rec.NewestFirst() {
		if tag := p.Reference.TagOnly(); tag != "" && !slices.Contains(names, tag) {
			names = append(names, tag)
		}
	}
	return names
}

// digests lists repo@digest of what was resolved, then of the chosen instance
// where that is another one (an index was pulled).
func digests(rec imageref.Record) []string {
	var names []string
	add := func(r imageref.Reference) {
		if s := r.String(); s != "" && !slices.Contains(names, s) {
			names = append(names, s)
		}
	}
	pulled := rec.NewestFirst()
	for _, p := range pulled {
		add(p.Pinned())
	}
	for _, p := range pulled {
		p.Digest = rec.Manifest
		add(p.Pinned())
	}
	return names
}

// verboseInfo is what CRI-O's verbose info holds, and what only Husk knows.
type verboseInfo struct {
	Labels    map[string]string `json:"labels,omitempty"`
	ImageSpec imgspec.Image     `json:"imageSpec"`
	Husk      huskInfo          `json:"husk"`
}

type huskInfo struct {
	ManifestDigest  string   `json:"manifestDigest"`
	StorageID       string   `json:"storageID"`
	StoredBytes     int64    `json:"storedBytes"`
	LayerBytes      int64    `json:"layerBytes"`
	Layers          int      `json:"layers"`
	EncryptedLayers int      `json:"encryptedLayers"`
	References      []string `json:"references"`
}

// ImageStatus answers an ImageStatus request with the record. A verbose answer
// has CRI-O's fields (labels, imageSpec) and a "husk" section.
func ImageStatus(rec imageref.Record, handler string, verbose bool) (*cri.ImageStatusResponse, error) {
	answer := &cri.ImageStatusResponse{Image: Image(rec, handler)}
	if !verbose {
		return answer, nil
	}
	info, err := json.Marshal(verboseInfo{
		Labels:    rec.Image.Config.Labels,
		ImageSpec: rec.Image,
		Husk: huskInfo{
			ManifestDigest:  rec.Manifest.String(),
			StorageID:       rec.StorageID.String(),
			StoredBytes:     rec.StoredBytes,
			LayerBytes:      rec.LayerBytes,
			Layers:          rec.Layers,
			EncryptedLayers: rec.EncryptedLayers,
			References:      References(rec),
		},
	})
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "describe image "+rec.ImageID().String(), err)
	}
	answer.Info = map[string]string{infoKey: string(info)}
	return answer, nil
}
