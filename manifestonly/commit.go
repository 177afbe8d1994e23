package manifestonly

import (
	"context"
	"slices"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Commit stores a fetched image as a record. It trusts nothing of img but that the
// policy accepted it: every digest, every limit of this package, and that the
// reference, the indexes, the manifest and the config belong together are checked
// again, because img may come from a child process that talked to a hostile
// registry. Such an img that does not hold together is errdefs.DigestMismatch,
// NotAnImage or TooLarge, and nothing is stored.
func Commit(ctx context.Context, img Image, store Writer) (imageref.Record, error) {
	op := "commit " + img.Pulled.Reference.String()
	checked, err := img.checked(op)
	if err != nil {
		return imageref.Record{}, err
	}
	return store.Put(ctx, checked)
}

// checked returns img with everything that can be derived from its bytes derived
// again, or an error if the bytes are not what names them.
func (img Image) checked(op string) (Image, error) {
	if err := img.checkName(op); err != nil {
		return Image{}, err
	}
	if err := img.checkChain(op); err != nil {
		return Image{}, err
	}
	if err := checkSignatures(op, img.Signatures); err != nil {
		return Image{}, err
	}
	doc, err := img.Manifest.open(op)
	if err != nil {
		return Image{}, err
	}
	if doc.isIndex() {
		return Image{}, errdefs.Newf(errdefs.NotAnImage, op, "the manifest is an index")
	}
	image, err := doc.image(op)
	if err != nil {
		return Image{}, err
	}
	// A time to come would make this pull the newest of its name forever.
	if now := time.Now().UTC().Round(0); img.Pulled.PulledAt.IsZero() || img.Pulled.PulledAt.After(now) {
		img.Pulled.PulledAt = now
	}
	if err := img.describe(op, image, img.Config); err != nil {
		return Image{}, err
	}
	return img, nil
}

// checkName checks that the reference was resolved to the outermost digest.
func (img Image) checkName(op string) error {
	ref, top := img.Pulled.Reference, img.top()
	if ref.IsZero() {
		return errdefs.Newf(errdefs.InvalidArgument, op, "the image has no reference")
	}
	d := ref.Digest()
	if !d.IsZero() && ref.Tag() != "" {
		return errdefs.Newf(errdefs.InvalidArgument, op, "a reference to store has a tag or a digest, not both")
	}
	if img.Pulled.Digest != top || !d.IsZero() && d != top {
		return errdefs.Newf(errdefs.DigestMismatch, op, "the reference was resolved to %s, but the image is %s", img.Pulled.Digest, top)
	}
	return nil
}

// checkChain checks that each index is what its digest says and lists the next one,
// the last of them the manifest.
func (img Image) checkChain(op string) error {
	if err := checkIndexes(op, img.Indexes); err != nil {
		return err
	}
	for i, index := range img.Indexes {
		doc, err := index.open(op)
		if err != nil {
			return err
		}
		next := img.Manifest
		if i+1 < len(img.Indexes) {
			next = img.Indexes[i+1]
		}
		if !slices.ContainsFunc(doc.Manifests, func(d imgspec.Descriptor) bool {
			return d.Digest == next.Digest.Digest() && d.Size == int64(len(next.Bytes))
		}) {
			return errdefs.Newf(errdefs.DigestMismatch, op, "the index %s does not list %s", index.Digest, next.Digest)
		}
	}
	return nil
}

// open checks the digest and the size of a manifest or an index and reads it.
func (b Blob) open(op string) (document, error) {
	if len(b.Bytes) > MaxManifestSize {
		return document{}, errdefs.Newf(errdefs.TooLarge, op, "the manifest has %d bytes, the limit is %d", len(b.Bytes), MaxManifestSize)
	}
	if err := checkAlgorithm(b.Digest.Digest()); err != nil {
		return document{}, errdefs.New(errdefs.NotAnImage, op, err)
	}
	if err := check(op, "manifest", b.Bytes, b.Digest.Digest(), -1); err != nil {
		return document{}, err
	}
	return parseDocument(op, b.Bytes)
}
