package manifestonly

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Fetch resolves req.Name, fetches and checks what describes the image, and
// applies the signature policy and req.Limits; it stores nothing. Every call asks
// the registry with the credentials of the request, whatever have holds; what the
// registry's answer names is then taken from have where it is there. have may be nil.
//
// A short name is tried at each registry it may mean; when all fail, the error
// of the last one is returned, as CRI-O does. Errors carry an errdefs kind and
// name the reference, never a credential. Stats are right in the failure case too.
func Fetch(ctx context.Context, req Request, src Source, have Holder) (Image, Stats, error) {
	if s, ok := src.(Starter); ok {
		own, end, err := s.Start(ctx, req)
		if err != nil {
			return Image{}, Stats{}, err
		}
		defer end()
		src = own
	}
	candidates, err := src.Resolve(ctx, req.Name)
	if err != nil {
		return Image{}, Stats{}, err
	}
	if n := len(candidates); n == 0 || n > MaxCandidates {
		return Image{}, Stats{}, errdefs.Newf(errdefs.InvalidArgument, "pull "+req.Name,
			"the name may mean %d images, want 1 to %d", n, MaxCandidates)
	}
	m := &meter{}
	ctx = m.attach(ctx)
	var img Image
	for _, ref := range candidates {
		f := fetcher{op: "pull " + ref.String(), req: req, meter: m, have: have}
		img, err = f.fetch(ctx, ref, src)
		// An image that is too large was found: another registry's image by the
		// same short name is not what was asked for.
		if err == nil || ctx.Err() != nil || errdefs.Is(err, errdefs.TooLarge) {
			break
		}
	}
	if err != nil {
		return Image{}, m.stats(), req.Credentials.Scrub(err)
	}
	return img, m.stats(), nil
}

// fetcher collects one image.
type fetcher struct {
	op     string
	req    Request
	meter  *meter
	have   Holder
	remote Remote
	ref    imageref.Reference
	img    Image
}

// fetch reads and checks the image that ref names.
func (f *fetcher) fetch(ctx context.Context, ref imageref.Reference, src Source) (img Image, err error) {
	if d := ref.Digest(); !d.IsZero() {
		if err := checkAlgorithm(d.Digest()); err != nil {
			return Image{}, errdefs.New(errdefs.Unsupported, f.op, err)
		}
		// A tag next to a digest says nothing more; CRI-O drops it too.
		if ref, err = ref.Pin(d); err != nil {
			return Image{}, errdefs.New(errdefs.InvalidArgument, f.op, err)
		}
	}
	f.ref = ref
	f.remote, err = src.Open(ctx, ref, Access{Credentials: f.req.Credentials, Namespace: f.req.Namespace})
	if err != nil {
		return Image{}, err
	}
	if _, ok := f.remote.(Stranger); ok {
		f.have = nil
	}
	defer func() {
		if closeErr := f.remote.Close(); closeErr != nil {
			err = errors.Join(err, errdefs.New(errdefs.Internal, f.op, closeErr))
		}
	}()
	doc, err := f.descend(ctx, ref.Digest())
	if err != nil {
		return Image{}, err
	}
	if err := f.read(ctx, doc); err != nil {
		return Image{}, err
	}
	// Round: the monotonic clock of this process means nothing in the store.
	f.img.Pulled = imageref.PulledReference{Reference: ref, Digest: f.img.top(), PulledAt: time.Now().UTC().Round(0)}
	return f.img, nil
}

// descend follows indexes from the reference to the manifest of an image.
func (f *fetcher) descend(ctx context.Context, want imageref.ManifestDigest) (document, error) {
	var next imageref.ManifestDigest // zero: what the reference names
	size := int64(-1)
	for {
		body, err := f.manifest(ctx, next)
		if err != nil {
			return document{}, err
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
		f.img.Indexes = append(f.img.Indexes, blob)
		if err := checkIndexes(f.op, f.img.Indexes); err != nil {
			return document{}, err
		}
		entry, err := doc.instance(f.op, f.req.Platform)
		if err != nil {
			return document{}, err
		}
		if next, err = imageref.ParseManifestDigest(entry.Digest.String()); err != nil {
			return document{}, errdefs.New(errdefs.NotAnImage, f.op, err)
		}
		want, size = next, entry.Size
	}
}

// manifest returns a manifest or an index, from the store if it is there. The
// zero digest is what the reference names, which only the registry can say: that
// question is also the check that these credentials may see the image.
func (f *fetcher) manifest(ctx context.Context, d imageref.ManifestDigest) ([]byte, error) {
	if !d.IsZero() {
		if body, ok := f.held(ctx, d.Digest()); ok {
			if p, ok := f.remote.(Primer); ok {
				p.Prime(Blob{Digest: d, Bytes: body})
			}
			return body, nil
		}
	}
	body, err := f.remote.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	f.meter.read(len(body))
	if len(body) > MaxManifestSize {
		return nil, errdefs.Newf(errdefs.TooLarge, f.op, "the manifest has %d bytes, the limit is %d", len(body), MaxManifestSize)
	}
	return body, nil
}

// held returns a blob that the store has from the repository being pulled. What
// it cannot give intact is fetched: the store is only asked to save a request.
func (f *fetcher) held(ctx context.Context, d digest.Digest) ([]byte, bool) {
	if f.have == nil {
		return nil, false
	}
	body, err := f.have.Blob(ctx, f.ref.Repository(), d)
	return body, err == nil && digest.FromBytes(body) == d
}

// read checks that doc is an image, asks the policy, and fetches the config.
// The policy comes first: nothing is fetched on the word of a manifest that it
// refuses.
func (f *fetcher) read(ctx context.Context, doc document) error {
	image, err := doc.image(f.op)
	if err != nil {
		return err
	}
	if err := f.req.Limits.Check(f.op, image.layers, image.layerBytes); err != nil {
		return err
	}
	var instance imageref.ManifestDigest
	if len(f.img.Indexes) > 0 {
		instance = f.img.Manifest.Digest
	}
	if f.img.Signatures, err = f.remote.Verify(ctx, instance); err != nil {
		return err
	}
	for _, s := range f.img.Signatures {
		f.meter.read(len(s))
	}
	if err := checkSignatures(f.op, f.img.Signatures); err != nil {
		return err
	}
	config, held := f.held(ctx, image.config.digest.Digest())
	if !held {
		if config, err = f.remote.Config(ctx, image.config); err != nil {
			return err
		}
		f.meter.read(len(config))
	}
	return f.img.describe(f.op, image, config)
}

// describe fills in what the config and the manifest say of the image, after
// checking that the one belongs to the other.
func (img *Image) describe(op string, image facts, config []byte) error {
	if err := check(op, "image config", config, image.config.digest.Digest(), image.config.size); err != nil {
		return err
	}
	parsed, err := ParseConfig(config)
	if err != nil {
		return errdefs.Newf(errdefs.NotAnImage, op, "the image config is not valid: %w", err)
	}
	img.ConfigDigest, img.Config, img.Parsed = image.config.digest, config, parsed
	img.Layers, img.EncryptedLayers, img.LayerBytes = image.layers, image.encrypted, image.layerBytes
	return nil
}

// checkIndexes refuses a chain of indexes that is too deep or too large.
func checkIndexes(op string, indexes []Blob) error {
	if n := len(indexes); n > MaxIndexDepth {
		return errdefs.Newf(errdefs.NotAnImage, op, "indexes nested deeper than %d are not supported", MaxIndexDepth)
	}
	total := 0
	for _, index := range indexes {
		total += len(index.Bytes)
	}
	if total > MaxIndexBytes {
		return errdefs.Newf(errdefs.TooLarge, op, "the indexes have %d bytes in all, the limit is %d", total, MaxIndexBytes)
	}
	return nil
}

// checkSignatures refuses more signatures than the image database should hold.
func checkSignatures(op string, signatures [][]byte) error {
	if n := len(signatures); n > MaxSignatures {
		return errdefs.Newf(errdefs.TooLarge, op, "the image has %d signatures, the limit is %d", n, MaxSignatures)
	}
	total := 0
	for _, s := range signatures {
		total += len(s)
	}
	if total > MaxSignatureBytes {
		return errdefs.Newf(errdefs.TooLarge, op, "the signatures have %d bytes, the limit is %d", total, MaxSignatureBytes)
	}
	return nil
}
