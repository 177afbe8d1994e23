package sandboxes

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// What can be true of one pod. A shim that answers with more is not believed: what it says
// is kept, shown and summed up with that of every other pod.
const (
	maxImages     = 512
	maxPulls      = 256
	maxContainers = 1024
	// maxName is the longest that Kubernetes lets a pod be called, in bytes.
	maxName = 253
	// maxReference is a registry, a repository and a digest.
	maxReference = 512
	// maxBytes of one image or store, and maxLayers of one image: sums of as many as
	// there can be of them do not overflow.
	maxBytes  = 1 << 50
	maxLayers = 1 << 16
)

func lie(sandboxID, format string, args ...any) error {
	return errdefs.Newf(errdefs.Unavailable, "ask the shim of sandbox "+sandboxID, "what it answered cannot be: "+format, args...)
}

// sandboxOf is what a shim said of its pod.
func sandboxOf(sandboxID string, answer *shimv1.ImageStatusResponse) (Sandbox, error) {
	if id := answer.GetSandboxId(); id != sandboxID {
		return Sandbox{}, lie(sandboxID, "it is sandbox %s", line(id, maxName))
	}
	if n := len(answer.GetPulls()); n > maxPulls {
		return Sandbox{}, lie(sandboxID, "%d pulls at once", n)
	}
	s := Sandbox{
		ID: sandboxID, Name: line(answer.GetPodName(), maxName),
		Namespace: line(answer.GetPodNamespace(), maxName), UID: line(answer.GetPodUid(), maxName),
		Store: Store{
			Kind:  line(answer.GetStore().GetKind(), maxName),
			Limit: number(answer.GetStore().GetSize()), Used: number(answer.GetStore().GetUsed()),
		},
	}
	for _, p := range answer.GetPulls() {
		s.Pulls = append(s.Pulls, Pull{
			Reference: line(p.GetReference(), maxReference), Progress: progressOf(p.GetProgress()), StartedAt: moment(p.GetStartedAt()),
		})
	}
	slices.SortStableFunc(s.Pulls, func(a, b Pull) int { return a.StartedAt.Compare(b.StartedAt) })
	return s, nil
}

func imagesOf(sandboxID string, answer *shimv1.ListImagesResponse) ([]Image, error) {
	if n := len(answer.GetImages()); n > maxImages {
		return nil, lie(sandboxID, "%d images", n)
	}
	images := make([]Image, 0, len(answer.GetImages()))
	for _, i := range answer.GetImages() {
		image, err := imageOf(i)
		if err != nil {
			return nil, lie(sandboxID, "%w", err)
		}
		images = append(images, image)
	}
	slices.SortStableFunc(images, func(a, b Image) int {
		return cmp.Or(b.PulledAt.Compare(a.PulledAt), cmp.Compare(a.Reference, b.Reference))
	})
	return images, nil
}

func imageOf(i *shimv1.Image) (Image, error) {
	const op = "read an image"
	manifest, err := imageref.ParseManifestDigest(i.GetManifestDigest())
	if err != nil {
		return Image{}, errdefs.Newf(errdefs.Unavailable, op, "its manifest digest is %q", line(i.GetManifestDigest(), maxReference))
	}
	id, err := imageref.ParseImageID(i.GetImageId())
	if err != nil {
		return Image{}, errdefs.Newf(errdefs.Unavailable, op, "its ID is %q", line(i.GetImageId(), maxReference))
	}
	if n := len(i.GetContainers()); n > maxContainers {
		return Image{}, errdefs.Newf(errdefs.Unavailable, op, "%d containers are on it", n)
	}
	for _, c := range i.GetContainers() {
		if pod.ValidID(c) != nil {
			return Image{}, errdefs.Newf(errdefs.Unavailable, op, "a container on it is %q", line(c, maxName))
		}
	}
	return Image{
		Reference: line(i.GetReference(), maxReference), Manifest: manifest, ID: id,
		Layers: int(min(i.GetLayers(), maxLayers)), Bytes: number(i.GetBytes()),
		PulledAt: moment(i.GetPulledAt()), Took: time.Duration(max(0, i.GetTook())), Containers: i.GetContainers(),
	}, nil
}

// progressOf is never more than all of it.
func progressOf(p *shimv1.Progress) Progress {
	got := Progress{Layers: int(min(p.GetLayers(), maxLayers)), Bytes: number(p.GetBytes())}
	got.LayersDone = min(int(min(p.GetLayersDone(), maxLayers)), got.Layers)
	got.BytesDone = min(number(p.GetBytesDone()), got.Bytes)
	return got
}

func number(n uint64) int64 { return int64(min(n, maxBytes)) }

// moment is a time that can be printed; what is no time is zero.
func moment(nanoseconds int64) time.Time {
	if nanoseconds <= 0 || nanoseconds == math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds).UTC()
}
