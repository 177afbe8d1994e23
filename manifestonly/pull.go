// Package manifestonly pulls everything of an image but its layers: it resolves
// a name, fetches the index, the manifest, the config and the signatures, checks
// every byte, and commits a layer-less record.
//
// The package is pure orchestration. It owns the interfaces [Source] (a
// registry) and [Store] (where records live); no method of either can name a
// layer.
package manifestonly

import (
	"context"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// Request asks for one pull.
type Request struct {
	// Name is the image as the user wrote it; short names are resolved.
	Name string
	// Credentials of the request, for this pull alone; zero for none.
	Credentials registryauth.Credentials
	// Namespace is the pod's Kubernetes namespace, for its signature policy and its
	// auth files; "" means the node's.
	Namespace string
	// Platform to choose from an index; zero is the node's own.
	Platform imgspec.Platform
	// Limits of the runtime handler, checked against the manifest.
	Limits Limits
}

// Result is a finished pull.
type Result struct {
	// Record is the record as it is now stored.
	Record imageref.Record
	// Pulled is the name of this pull, and what it resolved to.
	Pulled imageref.PulledReference
	// Stats is what the pull cost.
	Stats Stats
}

// Stats is what a pull cost at the registries, its retries included.
type Stats struct {
	// Requests is how many HTTP requests were sent.
	Requests int `json:"requests"`
	// Bytes is how many bytes of manifests, configs and signatures were read.
	Bytes int64 `json:"bytes"`
}

// Limits are an operator's own, below the hard ones of this package.
type Limits struct {
	// MaxImageBytes bounds the sum of the compressed layers. Zero: no bound.
	MaxImageBytes int64 `json:"max_image_bytes,omitempty"`
	// MaxLayers bounds their number. Zero: the package's MaxLayers.
	MaxLayers int `json:"max_layers,omitempty"`
}

// Check returns errdefs.TooLarge, with the numbers, for an image of that many layers and
// bytes that is over the limits.
func (l Limits) Check(op string, layers int, layerBytes int64) error {
	if l.MaxLayers > 0 && layers > l.MaxLayers {
		return errdefs.Newf(errdefs.TooLarge, op, "the image has %d layers; the handler allows %d", layers, l.MaxLayers)
	}
	if l.MaxImageBytes > 0 && layerBytes > l.MaxImageBytes {
		return errdefs.Newf(errdefs.TooLarge, op, "the image has %d layers of %d bytes in all; the handler allows %d",
			layers, layerBytes, l.MaxImageBytes)
	}
	return nil
}

// Pull is [Fetch] and [Commit]: it commits what req names as a record to store.
// A store that is a [Holder] spares the requests for what it holds.
func Pull(ctx context.Context, req Request, src Source, store Writer) (Result, error) {
	have, _ := store.(Holder) // nil for a store that is none
	img, stats, err := Fetch(ctx, req, src, have)
	if err != nil {
		return Result{Stats: stats}, err
	}
	record, err := Commit(ctx, img, store)
	if err != nil {
		return Result{Stats: stats}, err
	}
	return Result{Record: record, Pulled: img.Pulled, Stats: stats}, nil
}
