package cstore

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Held returns a [manifestonly.Source] of the one image with this ID that CRI-O
// holds in full. A pull from it asks no registry: it is for a guest-pull container
// of an image that kubelet found present, because an ordinary pod pulled it.
//
// The signature policy is CRI-O's: it judged the image when it pulled it, and
// judges the record, which gets the same signatures, at CreateContainer. An image
// whose manifest CRI-O changed by decrypting it has a digest that no registry
// knows; the pull in the pod then says so.
func (s *Store) Held(id imageref.ImageID) manifestonly.Source { return held{s.store, id} }

type held struct {
	store storage.Store
	id    imageref.ImageID
}

// Resolve implements [manifestonly.Source]; the name must be fully qualified.
func (h held) Resolve(_ context.Context, name string) ([]imageref.Reference, error) {
	ref, err := imageref.ParseReference(name)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "resolve image name "+name, err)
	}
	return []imageref.Reference{ref}, nil
}

// Open implements [manifestonly.Source]. The image must have a name in the
// repository of ref, or it did not come from there.
func (h held) Open(_ context.Context, ref imageref.Reference, _ manifestonly.Access) (manifestonly.Remote, error) {
	op := "use the image that CRI-O holds as " + ref.String()
	if h.id.IsZero() { // "" would be the prefix of any ID
		return nil, errdefs.Newf(errdefs.InvalidArgument, op, "no image ID")
	}
	img, err := h.store.Image(h.id.String())
	if err != nil {
		return nil, mapped(op, err)
	}
	meta, err := parseMetadata(img)
	if err != nil {
		return nil, errdefs.New(errdefs.NotFound, op, err)
	}
	if meta != nil || img.TopLayer == "" {
		return nil, errdefs.Newf(errdefs.NotFound, op, "image %s is not held in full", h.id)
	}
	fromThere := func(name string) bool {
		known, err := imageref.ParseReference(name)
		return err == nil && known.Repository() == ref.Repository()
	}
	if !slices.ContainsFunc(img.Names, fromThere) {
		return nil, errdefs.Newf(errdefs.NotFound, op, "image %s has no name in %s", h.id, ref.Repository())
	}
	return heldImage{store: h.store, img: img, op: op, ref: ref}, nil
}

// heldImage is a [manifestonly.Remote] on the big data of an image.
type heldImage struct {
	store storage.Store
	img   *storage.Image
	op    string
	ref   imageref.Reference
}

// Manifest implements [manifestonly.Remote]. A tag stands for the index where one
// is stored: that is what it resolved to when CRI-O pulled it.
func (h heldImage) Manifest(_ context.Context, d imageref.ManifestDigest) ([]byte, error) {
	if d.IsZero() {
		d = h.ref.Digest()
	}
	if d.IsZero() {
		return h.top()
	}
	if h.img.BigDataDigests[storage.ImageDigestBigDataKey] == d.Digest() {
		return h.read(storage.ImageDigestBigDataKey, manifestonly.MaxManifestSize)
	}
	return h.read(manifestPrefix+d.String(), manifestonly.MaxManifestSize)
}

// top returns the only stored index, or else the manifest.
func (h heldImage) top() ([]byte, error) {
	var found []byte
	for _, key := range h.img.BigDataNames {
		if !strings.HasPrefix(key, manifestPrefix) {
			continue
		}
		body, err := h.read(key, manifestonly.MaxManifestSize)
		if err != nil {
			return nil, err
		}
		var index struct {
			Manifests []json.RawMessage `json:"manifests"`
		}
		if json.Unmarshal(body, &index) != nil || len(index.Manifests) == 0 {
			continue
		}
		if found != nil { // of two indexes, neither is sure to be the tag's
			return h.read(storage.ImageDigestBigDataKey, manifestonly.MaxManifestSize)
		}
		found = body
	}
	if found != nil {
		return found, nil
	}
	return h.read(storage.ImageDigestBigDataKey, manifestonly.MaxManifestSize)
}

// Verify implements [manifestonly.Remote]; see [Store.Held] for the policy.
func (h heldImage) Verify(_ context.Context, instance imageref.ManifestDigest) ([][]byte, error) {
	var meta metadata
	if err := json.Unmarshal([]byte(h.img.Metadata), &meta); err != nil {
		return nil, nil //nolint:nilerr // no metadata of containers/image: no signatures
	}
	key, lengths := signaturesKey, meta.SignatureSizes
	if !instance.IsZero() {
		key, lengths = signaturePrefix+instance.Digest().Encoded(), meta.SignaturesSizes[instance.Digest()]
	}
	if len(lengths) == 0 {
		return nil, nil
	}
	blob, err := h.read(key, manifestonly.MaxSignatureBytes)
	if err != nil {
		return nil, err
	}
	var signatures [][]byte
	for _, n := range lengths {
		if n < 0 || n > len(blob) {
			return nil, errdefs.Newf(errdefs.DigestMismatch, h.op, "the stored signatures are damaged")
		}
		signatures, blob = append(signatures, blob[:n]), blob[n:]
	}
	return signatures, nil
}

// Config implements [manifestonly.Remote].
func (h heldImage) Config(_ context.Context, config manifestonly.ConfigRef) ([]byte, error) {
	return h.read(config.Digest().String(), manifestonly.MaxConfigSize)
}

// Close implements [manifestonly.Remote].
func (h heldImage) Close() error { return nil }

// read returns one bounded item of big data. Its digest is checked by Pull, which
// knows what was asked for.
func (h heldImage) read(key string, limit int64) ([]byte, error) { //nolint:unparam // limits of three kinds that happen to be equal
	size, ok := h.img.BigDataSizes[key]
	if !ok {
		return nil, errdefs.Newf(errdefs.NotFound, h.op, "the store has no %s", key)
	}
	if size > limit {
		return nil, errdefs.Newf(errdefs.TooLarge, h.op, "%s has %d bytes, the limit is %d", key, size, limit)
	}
	data, err := h.store.ImageBigData(h.img.ID, key)
	if err != nil {
		return nil, mapped(h.op, err)
	}
	return data, nil
}
