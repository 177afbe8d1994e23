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
	"encoding/json"
	"errors"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Request asks for one pull.
type Request struct {
	// Name is the image as the user wrote it; short names are resolved.
	Name string
	// Credentials of the request, for this pull alone; zero for none.
	Credentials Credentials
	// Namespace is the pod's Kubernetes namespace, for its signature policy; ""
	// means the node's policy.
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

// Pull resolves req.Name, fetches and checks what describes the image, applies
// the signature policy, and commits a record to store. Every call contacts the
// registry with the credentials of the request, whatever the store holds.
//
// A short name is tried at each registry it may mean; when all fail, the error
// of the last one is returned, as CRI-O does. Errors carry an errdefs kind and
// name the reference, never a credential.
func Pull(ctx context.Context, req Request, src Source, store Writer) (Result, error) {
	candidates, err := src.Resolve(ctx, req.Name)
	if err != nil {
		return Result{}, err
	}
	if n := len(candidates); n == 0 || n > MaxCandidates {
		return Result{}, errdefs.Newf(errdefs.InvalidArgument, "pull "+req.Name,
			"the name may mean %d images, want 1 to %d", n, MaxCandidates)
	}
	var img Image
	for _, ref := range candidates {
		img, err = fetch(ctx, ref, req, src)
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return Result{}, req.Credentials.Scrub(err)
	}
	record, err := store.Put(ctx, img)
	if err != nil {
		return Result{}, err
	}
	return Result{Record: record, Pulled: img.Pulled}, nil
}

// fetch reads and checks one image without storing it.
func fetch(ctx context.Context, ref imageref.Reference, req Request, src Source) (img Image, err error) {
	op := "pull " + ref.String()
	if d := ref.Digest(); !d.IsZero() {
		if err := checkAlgorithm(d.Digest()); err != nil {
			return Image{}, errdefs.New(errdefs.Unsupported, op, err)
		}
		// A tag next to a digest says nothing more; CRI-O drops it too.
		if ref, err = ref.Pin(d); err != nil {
			return Image{}, errdefs.New(errdefs.InvalidArgument, op, err)
		}
	}
	remote, err := src.Open(ctx, ref, Access{Credentials: req.Credentials, Namespace: req.Namespace})
	if err != nil {
		return Image{}, err
	}
	defer func() {
		if closeErr := remote.Close(); closeErr != nil {
			err = errors.Join(err, errdefs.New(errdefs.Internal, op, closeErr))
		}
	}()
	f := fetcher{op: op, remote: remote, platform: req.Platform}
	doc, err := f.descend(ctx, ref.Digest())
	if err != nil {
		return Image{}, err
	}
	if err := f.read(ctx, doc); err != nil {
		return Image{}, err
	}
	top := f.img.Manifest.Digest
	if len(f.img.Indexes) > 0 {
		top = f.img.Indexes[0].Digest
	}
	f.img.Pulled = imageref.PulledReference{Reference: ref, Digest: top, PulledAt: time.Now().UTC()}
	return f.img, nil
}

// fetcher collects one image.
type fetcher struct {
	op       string
	remote   Remote
	platform imgspec.Platform
	img      Image
}

// descend follows indexes from the reference to the manifest of an image.
func (f *fetcher) descend(ctx context.Context, want imageref.ManifestDigest) (document, error) {
	var next imageref.ManifestDigest // zero: what the reference names
	size := int64(-1)
	for {
		body, err := f.remote.Manifest(ctx, next)
		if err != nil {
			return document{}, err
		}
		if len(body) > MaxManifestSize {
			return document{}, errdefs.Newf(errdefs.TooLarge, f.op, "the manifest has %d bytes, the limit is %d", len(body), MaxManifestSize)
		}
		blob := blobOf(body)
		if !want.IsZero() {
			if err := check(f.op, "manifest", body, want.Digest(), size); err != nil {
				return document{}, err
			}
		}
		doc, err := parseDocument(f.op, body)
		if err != nil {
			return document{}, err
		}
		if !doc.isIndex() {
			f.img.Manifest = blob
			return doc, nil
		}
		if len(f.img.Indexes) == MaxIndexDepth {
			return document{}, errdefs.Newf(errdefs.NotAnImage, f.op, "indexes nested deeper than %d are not supported", MaxIndexDepth)
		}
		f.img.Indexes = append(f.img.Indexes, blob)
		entry, err := doc.instance(f.op, f.platform)
		if err != nil {
			return document{}, err
		}
		if next, err = imageref.ParseManifestDigest(entry.Digest.String()); err != nil {
			return document{}, errdefs.New(errdefs.NotAnImage, f.op, err)
		}
		want, size = next, entry.Size
	}
}

// read checks that doc is an image, asks the policy, and fetches the config.
// The policy comes first: nothing is fetched on the word of a manifest that it
// refuses.
func (f *fetcher) read(ctx context.Context, doc document) error {
	image, err := doc.image(f.op)
	if err != nil {
		return err
	}
	var instance imageref.ManifestDigest
	if len(f.img.Indexes) > 0 {
		instance = f.img.Manifest.Digest
	}
	if f.img.Signatures, err = f.remote.Verify(ctx, instance); err != nil {
		return err
	}
	if err := f.checkSignatures(); err != nil {
		return err
	}
	config, err := f.remote.Config(ctx, image.config)
	if err != nil {
		return err
	}
	if err := check(f.op, "image config", config, image.config.digest.Digest(), image.config.size); err != nil {
		return err
	}
	if err := json.Unmarshal(config, &f.img.Parsed); err != nil {
		return errdefs.Newf(errdefs.NotAnImage, f.op, "the image config is not valid: %w", err)
	}
	f.img.ConfigDigest, f.img.Config = image.config.digest, config
	f.img.Layers, f.img.EncryptedLayers, f.img.LayerBytes = image.layers, image.encrypted, image.layerBytes
	return nil
}

func (f *fetcher) checkSignatures() error {
	if n := len(f.img.Signatures); n > MaxSignatures {
		return errdefs.Newf(errdefs.TooLarge, f.op, "the image has %d signatures, the limit is %d", n, MaxSignatures)
	}
	total := 0
	for _, s := range f.img.Signatures {
		total += len(s)
	}
	if total > MaxSignatureBytes {
		return errdefs.Newf(errdefs.TooLarge, f.op, "the signatures have %d bytes, the limit is %d", total, MaxSignatureBytes)
	}
	return nil
}
