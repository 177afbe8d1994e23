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
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return imageref.Record{}, err
	}
	defer release()
	id := imageref.RecordID(img.Manifest.Digest)
	// Whose tag it is now: records change their names only under the lock.
	before, err := s.view(ctx)
	if err != nil {
		return imageref.Record{}, err
	}
	others := before.tagged(id, img.Pulled.Reference)
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
	for _, other := range others {
		if err := s.demote(other, img.Pulled.Reference); err != nil {
			return imageref.Record{}, err
		}
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
		Platform:        manifestonly.PlatformOf(img.Parsed),
		Layers:          img.Layers,
		EncryptedLayers: img.EncryptedLayers,
		LayerBytes:      img.LayerBytes,
	}
	var refs []imageref.PulledReference
	if old != nil {
		refs, _ = old.Husk.references() // names that cannot be read are no names; this pull drops them
		h.Indexes = old.Husk.Indexes
	}
	h.References = encodeReferences(refset.Merge(refs, img.Pulled, manifestonly.MaxReferences))
	h.Indexes = mergeIndexes(h.Indexes, img.Indexes)
	meta := metadata{Husk: h}
	if len(img.Signatures) > 0 {
		meta.SignatureSizes = sizes(img.Signatures)
		meta.SignaturesSizes = map[digest.Digest][]int{manifest: meta.SignatureSizes}
	}
	return meta
}

// mergeIndexes returns the indexes of a record after a pull: those of the pull
// first, outermost first, as far as there is room for them.
func mergeIndexes(old []string, pulled []manifestonly.Blob) []string {
	room := maxIndexes - len(old)
	var merged []string
	for _, index := range pulled {
		d := index.Digest.String()
		if known := slices.Contains(old, d); known || room > 0 {
			merged = append(merged, d)
			if !known {
				room--
			}
		}
	}
	for _, d := range old {
		if !slices.Contains(merged, d) {
			merged = append(merged, d)
		}
	}
	return merged
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

// seedPrefix starts the name of a directory in which data is made ready. It is no
// image ID, so CRI-O leaves it alone; checkOrphans finds it.
const seedPrefix = ".husk-"

// seed puts the big data where containers/storage will write it again, before
// the image exists. Should the process die inside CreateImage, the half record
// can be read, and CRI-O, which fails to list any image when one of them cannot
// be read, goes on. Nothing depends on it but that: data that is left alone
// (no image was made) is replaced by the next pull, removed by Check, or collected
// when CRI-O starts. It appears whole, or it could not be told from a directory that
// CRI-O is about to fill. The caller holds the lock, and there is no such image.
func (s *Store) seed(id imageref.StorageID, list []item) error {
	ready, dir := filepath.Join(s.images, seedPrefix+id.String()), filepath.Join(s.images, id.String())
	for _, left := range []string{ready, dir} {
		if err := os.RemoveAll(left); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(ready, 0o700); err != nil {
		return err
	}
	for _, it := range list {
		if err := ioutils.AtomicWriteFile(filepath.Join(ready, fileName(it.key)), it.data, 0o600); err != nil {
			return err
		}
	}
	return os.Rename(ready, dir)
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

// tagged returns the other records, whole or half, that have the tag.
func (v *view) tagged(keep imageref.StorageID, tag imageref.Reference) []string {
	var ids []string
	for id, e := range v.entries {
		if _, changed := refset.Demote(e.refs, tag); changed && id != keep.String() {
			ids = append(ids, id)
		}
	}
	return ids
}

// demote takes the tag from a record that had it. The caller holds the lock.
func (s *Store) demote(id string, tag imageref.Reference) error {
	storageID, err := imageref.ParseStorageID(id)
	if err != nil {
		return errdefs.New(errdefs.Internal, "write record "+id, err)
	}
	_, meta, err := s.find(storageID)
	if errdefs.Is(err, errdefs.NotFound) { // CRI-O removed it meanwhile
		return nil
	} else if err != nil {
		return err
	}
	refs, _ := meta.Husk.references()
	rest, _ := refset.Demote(refs, tag)
	meta.Husk.References = encodeReferences(rest)
	if err := s.setMetadata(id, *meta); err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	return nil
}
