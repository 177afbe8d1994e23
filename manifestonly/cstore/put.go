package cstore

import (
	"bytes"
	"context"
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/ioutils"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/internal/refset"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// maxIndexes bounds the indexes kept with one record. Big data can be added to
// an image but not taken away, and an index may be rebuilt every day over the
// same manifest; past the bound a new index is recorded by its digest alone.
const maxIndexes = 16

// Put implements [manifestonly.Writer].
func (s *Store) Put(ctx context.Context, img manifestonly.Image) (imageref.Record, error) {
	release, err := s.lock.acquire(ctx)
	if err != nil {
		return imageref.Record{}, err
	}
	defer release()
	id := imageref.RecordID(img.Manifest.Digest)
	old, oldMeta, err := s.find(id)
	switch {
	case err == nil:
		err = s.update(old, oldMeta, img)
	case errdefs.Is(err, errdefs.NotFound) && s.store.Exists(id.String()):
		err = errdefs.New(errdefs.Unsupported, "store "+img.Pulled.Reference.String(), err)
	case errdefs.Is(err, errdefs.NotFound):
		err = s.create(id, img)
	}
	if err != nil {
		return imageref.Record{}, err
	}
	// The tag is dropped elsewhere only now: had this been interrupted, two
	// records would have it and the later pull would win.
	if err := s.demoteOthers(ctx, id, img.Pulled.Reference); err != nil {
		return imageref.Record{}, err
	}
	return s.Get(ctx, id)
}

// describe returns the metadata of img, merged with what the record had.
func describe(img manifestonly.Image, old *metadata) metadata {
	manifest := img.Manifest.Digest.Digest()
	h := &husk{
		Version:         version,
		Manifest:        manifest.String(),
		Config:          img.ConfigDigest.String(),
		Platform:        platformName(img),
		Layers:          img.Layers,
		EncryptedLayers: img.EncryptedLayers,
		LayerBytes:      img.LayerBytes,
	}
	var refs []imageref.PulledReference
	if old != nil {
		var err error
		if refs, err = old.Husk.references(); err != nil {
			refs = nil // names that cannot be read are no names; this pull mends that
		}
		h.Indexes = slices.Clone(old.Husk.Indexes)
	}
	h.References = encodeReferences(refset.Merge(refs, img.Pulled, manifestonly.MaxReferences))
	for _, index := range img.Indexes {
		if d := index.Digest.String(); !slices.Contains(h.Indexes, d) && len(h.Indexes) < maxIndexes {
			h.Indexes = append(h.Indexes, d)
		}
	}
	meta := metadata{Husk: h}
	if len(img.Signatures) > 0 {
		meta.SignatureSizes = sizes(img.Signatures)
		meta.SignaturesSizes = map[digest.Digest][]int{manifest: meta.SignatureSizes}
	}
	return meta
}

func platformName(img manifestonly.Image) string {
	p := img.Parsed
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// create makes a new record. containers/storage holds its own lock for the whole
// of it, so nobody sees a part unless this process dies.
func (s *Store) create(id imageref.StorageID, img manifestonly.Image) error {
	op := "create record " + id.String()
	text, err := describe(img, nil).encode()
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	opts := &storage.ImageOptions{Metadata: text, Digest: img.Manifest.Digest.Digest()}
	if img.Parsed.Created != nil {
		opts.CreationDate = *img.Parsed.Created
	}
	list := items(img)
	for _, it := range list {
		opts.BigData = append(opts.BigData, storage.ImageBigDataOption{Key: it.key, Data: it.data, Digest: it.digest})
	}
	if err := s.seed(id, list); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	if _, err := s.store.CreateImage(id.String(), nil, "", "", opts); err != nil {
		return mapped(op, err)
	}
	return nil
}

// seed puts the big data where containers/storage will write it again, before
// the image exists. Should the process die inside CreateImage, the half record
// can be read, and CRI-O, which fails to list any image when one of them cannot
// be read, goes on. Nothing depends on it but that: a file that is left alone
// (no image was made) is overwritten by the next pull, or collected when CRI-O
// starts.
func (s *Store) seed(id imageref.StorageID, list []item) error {
	dir := filepath.Join(s.images, id.String())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, it := range list {
		if err := ioutils.AtomicWriteFile(filepath.Join(dir, fileName(it.key)), it.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// fileName is how containers/storage names the file of a big data item.
func fileName(key string) string {
	for _, c := range []byte(key) {
		if c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "=" + base64.StdEncoding.EncodeToString([]byte(key))
		}
	}
	return key
}

// update brings a record, whole or half, up to date with img. At every step what
// the metadata promises is there.
func (s *Store) update(old *storage.Image, oldMeta *metadata, img manifestonly.Image) error {
	op := "update record " + old.ID
	meta := describe(img, oldMeta)
	var missing []item
	for _, it := range items(img) {
		if !s.has(old, it) && wantsItem(meta, it) {
			missing = append(missing, it)
		}
	}
	if slices.ContainsFunc(missing, func(it item) bool { return isSignature(it.key) }) && !maps.EqualFunc(oldMeta.SignaturesSizes, meta.SignaturesSizes, slices.Equal) {
		// Signatures and their sizes are written apart. Until both are there the
		// record counts as unsigned, which a policy that wants signatures refuses.
		unsigned := metadata{Husk: oldMeta.Husk}
		if err := s.setMetadata(old.ID, unsigned); err != nil {
			return err
		}
	}
	for _, it := range missing {
		fixed := func([]byte) (digest.Digest, error) { return it.digest, nil }
		if err := s.store.SetImageBigData(old.ID, it.key, it.data, fixed); err != nil {
			return mapped(op, err)
		}
	}
	return s.setMetadata(old.ID, meta)
}

// wantsItem reports whether the metadata has room for an item: an index past the
// bound is not kept.
func wantsItem(meta metadata, it item) bool {
	if isSignature(it.key) {
		return true
	}
	_, ok := meta.Husk.expected()[it.key]
	return ok
}

// has reports whether the image holds the item, byte for byte.
func (s *Store) has(img *storage.Image, it item) bool {
	if img.BigDataDigests[it.key] != it.digest || img.BigDataSizes[it.key] != int64(len(it.data)) {
		return false
	}
	data, err := s.store.ImageBigData(img.ID, it.key)
	return err == nil && bytes.Equal(data, it.data)
}

// demoteOthers takes the tag from every other record that had it.
func (s *Store) demoteOthers(ctx context.Context, keep imageref.StorageID, tag imageref.Reference) error {
	return s.each(ctx, func(img *storage.Image, meta *metadata) error {
		if img.ID == keep.String() {
			return nil
		}
		refs, err := meta.Husk.references()
		rest, changed := refset.Demote(refs, tag)
		if err != nil || !changed { // one without a readable name does not have this one
			return nil //nolint:nilerr // the other record is not what is being stored
		}
		meta.Husk.References = encodeReferences(rest)
		if err := s.setMetadata(img.ID, *meta); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return err
		}
		return nil
	})
}
