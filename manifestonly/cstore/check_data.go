package cstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containers/storage"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// checkItem compares one big data item with what the store has on record.
func (s *Store) checkItem(img *storage.Image, meta *metadata, key string) (problem, bool, error) {
	data, wrong, err := s.readItem(img, key)
	if err != nil || wrong == "" {
		return problem{}, false, err
	}
	p := problem{kind: DamagedData, detail: fmt.Sprintf("%s: %s", key, wrong)}
	if isSignature(key) && !meta.signed(key) {
		// containers/storage replaces the file before the size it has on record, and
		// CRI-O's own check at start would take the record for damaged. The record
		// counts as unsigned at this point, so what the file says is free.
		p.kind = SignatureMismatch
		p.mend = func() error { return s.writeItem(img.ID, key, data, digest.FromBytes(data)) }
		return p, true, nil
	}
	// The manifest and the signatures are there twice, under two names.
	want := img.BigDataDigests[key]
	for _, twin := range img.BigDataNames {
		if twin == key || img.BigDataDigests[twin] != want {
			continue
		}
		if copied, wrong, err := s.readItem(img, twin); err == nil && wrong == "" {
			p.mend = func() error { return s.writeItem(img.ID, key, copied, want) }
			break
		}
	}
	return p, true, nil
}

// signed reports whether the metadata counts on signatures in this item.
func (m metadata) signed(key string) bool {
	if key == signaturesKey {
		return len(m.SignatureSizes) > 0
	}
	for d, sizes := range m.SignaturesSizes {
		if signaturePrefix+d.Encoded() == key { // halfMade has checked the digest
			return len(sizes) > 0
		}
	}
	return false
}

// readItem returns an item and what is wrong with it; "" for nothing. A file that
// is not as long as it should be is read only if it is within the limit of what
// Husk ever wrote: damage can have any size.
func (s *Store) readItem(img *storage.Image, key string) ([]byte, string, error) {
	op := "check record " + img.ID
	size := img.BigDataSizes[key]
	info, err := os.Stat(filepath.Join(s.images, img.ID, fileName(key)))
	if err == nil && info.Size() > max(size, manifestonly.MaxSignatureBytes) {
		return nil, fmt.Sprintf("it has %d bytes, not %d", info.Size(), size), nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", errdefs.New(errdefs.Internal, op, err)
	}
	data, err := s.store.ImageBigData(img.ID, key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "it is missing", nil
	case err != nil:
		return nil, "", mapped(op, err)
	case int64(len(data)) != size:
		return data, fmt.Sprintf("it has %d bytes, not %d", len(data), size), nil
	}
	want := img.BigDataDigests[key]
	if err := want.Validate(); err != nil {
		return data, fmt.Sprintf("its digest is %q on record", want), nil //nolint:nilerr // it is what was looked for
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return data, fmt.Sprintf("it is %s, not %s", got, want), nil
	}
	return data, "", nil
}

func (s *Store) writeItem(id, key string, data []byte, d digest.Digest) error {
	fixed := func([]byte) (digest.Digest, error) { return d, nil }
	if err := s.store.SetImageBigData(id, key, data, fixed); err != nil {
		return mapped("repair record "+id, err)
	}
	return nil
}

// checkOrphans looks for the data of records that were never made.
func (s *Store) checkOrphans(ctx context.Context, repair bool) ([]Finding, error) {
	entries, err := os.ReadDir(s.images)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, errdefs.New(errdefs.Internal, "check records", err)
	}
	var found []Finding
	for _, e := range entries {
		id, err := imageref.ParseStorageID(strings.TrimPrefix(e.Name(), seedPrefix))
		if err != nil || !e.IsDir() || s.store.Exists(e.Name()) {
			continue
		}
		f, ok, err := s.checkOrphan(ctx, id, e.Name(), repair)
		if err != nil {
			return found, err
		}
		if ok {
			found = append(found, f)
		}
	}
	return found, nil
}

// checkOrphan looks at one directory that belongs to no image, under the lock: a
// writer of Husk makes the data ready, puts it in place and then makes the image.
func (s *Store) checkOrphan(ctx context.Context, id imageref.StorageID, name string, repair bool) (Finding, bool, error) {
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return Finding{}, false, err
	}
	defer release()
	// While CRI-O removes an image it holds the lock that Exists waits for, so what
	// is there afterwards is not in removal.
	dir := filepath.Join(s.images, name)
	if s.store.Exists(name) || !isSeed(dir, id) {
		return Finding{}, false, nil
	}
	f := Finding{Kind: OrphanData, Record: id.String(), References: []string{}, Detail: dir, Done: Left}
	if repair {
		if err := os.RemoveAll(dir); err != nil {
			f.Detail += "; repair failed: " + err.Error()
		} else {
			f.Done = Removed
		}
	}
	return f, true, nil
}

// isSeed reports whether the directory is one that Husk has put the data of a record
// in: its name has Husk's prefix, or it follows from the manifest in it. Any other is
// not Husk's to remove.
func isSeed(dir string, id imageref.StorageID) bool {
	if strings.HasPrefix(filepath.Base(dir), seedPrefix) {
		info, err := os.Lstat(dir) // not if its writer has moved it meanwhile
		return err == nil && info.IsDir()
	}
	path := filepath.Join(dir, storage.ImageDigestBigDataKey)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > manifestonly.MaxManifestSize {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	body, err := io.ReadAll(io.LimitReader(file, manifestonly.MaxManifestSize))
	if err := errors.Join(err, file.Close()); err != nil {
		return false
	}
	d, err := imageref.ParseManifestDigest(digest.FromBytes(body).String())
	return err == nil && imageref.RecordID(d) == id
}
