package cstore

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/lockfile"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// cache keeps what was read from the store, because every question about an image
// asks for all records. It holds what the store holds and no more: an image that
// is gone takes its entry along.
type cache struct {
	mu sync.Mutex
	// changes is the lock file in which every writer of containers/storage, in
	// whatever process, leaves a mark of its own; nil when one file does not tell
	// of all images, and then the images are compared each time.
	changes *lockfile.LockFile
	// at is the mark that view was read at, or an older one; it says something
	// only while settled is true.
	at      lockfile.LastWrite
	settled bool
	view    *view
}

// view is all records at one moment. It is never changed, only replaced.
type view struct {
	entries map[string]*entry // by storage ID: every record of this version
	records []imageref.Record // the whole ones, in the order of their IDs
}

// entry is one record as it was read. It is good for as long as containers/storage
// says the same of the image.
type entry struct {
	metadata string
	sizes    map[string]int64
	digests  map[string]digest.Digest
	// refs are its names, also those of half a record.
	refs   []imageref.PulledReference
	record imageref.Record
	err    error // why there is no record: it is half made or damaged
}

func (e *entry) still(img *storage.Image) bool {
	return e.err == nil && e.metadata == img.Metadata &&
		maps.Equal(e.sizes, img.BigDataSizes) && maps.Equal(e.digests, img.BigDataDigests)
}

// changesOf returns the file that tells of every change to the images, or nil when
// images may also come from further places: those have marks of their own.
func changesOf(s storage.Store, opts Options, images string) (*lockfile.LockFile, error) {
	further := func(option string) bool { return strings.Contains(strings.ToLower(option), "imagestore") }
	if opts.ImageStore != "" || slices.ContainsFunc(s.GraphOptions(), further) {
		return nil, nil //nolint:nilnil // no such file is no error
	}
	return lockfile.GetLockFile(images + "/images.lock")
}

// mark returns the present mark and whether it is another than that of the view.
// The caller holds mu.
func (c *cache) mark() (lockfile.LastWrite, bool, error) {
	if c.changes == nil {
		return lockfile.LastWrite{}, true, nil
	}
	c.changes.RLock()
	defer c.changes.Unlock()
	if !c.settled {
		at, err := c.changes.GetLastWrite()
		return at, true, err
	}
	return c.changes.ModifiedSince(c.at)
}

// forget makes the next call read every record again.
func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view, c.settled = &view{}, false
}

// view returns the records as the store has them now. Where nothing was written
// since the last call, by whatever process, it costs one read of the lock file.
func (s *Store) view(ctx context.Context) (*view, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	at, changed, err := c.mark()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "list image store", err)
	}
	if !changed {
		return c.view, nil
	}
	// The mark was taken before the images: what is written in between is seen now
	// and, for nothing, looked at again by the next call.
	images, err := s.store.Images()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "list image store", err)
	}
	old := c.view
	c.view, c.at, c.settled = &view{entries: make(map[string]*entry, len(old.entries)), records: make([]imageref.Record, 0, len(old.records))}, at, true
	for i := range images {
		c.add(s, old, &images[i])
	}
	slices.SortFunc(c.view.records, func(a, b imageref.Record) int {
		return strings.Compare(a.StorageID.String(), b.StorageID.String())
	})
	return c.view, nil
}

// add puts one image into the view if it is a record.
func (c *cache) add(s *Store, old *view, img *storage.Image) {
	if c.view.entries[img.ID] != nil { // again from a further store: the first one counts
		return
	}
	e := old.entries[img.ID]
	if e == nil || !e.still(img) {
		meta, err := parseMetadata(img)
		if err != nil || meta == nil {
			return // not Husk's, or not of this version
		}
		e = &entry{metadata: img.Metadata, sizes: img.BigDataSizes, digests: img.BigDataDigests}
		e.refs, _ = meta.Husk.references()
		e.record, e.err = s.record(img, meta)
	}
	c.view.entries[img.ID] = e
	if e.err != nil {
		c.settled = false // its files may be mended without a mark: look again
		return
	}
	c.view.records = append(c.view.records, e.record)
}

// record reads what a caller wants to know of a record; of one that is half made
// or damaged, nothing: it is errdefs.NotFound.
func (s *Store) record(img *storage.Image, meta *metadata) (imageref.Record, error) {
	op := "read record " + img.ID
	if err := meta.halfMade(img); err != nil {
		return imageref.Record{}, errdefs.New(errdefs.NotFound, op, err)
	}
	r, err := meta.Husk.record()
	if err != nil {
		return imageref.Record{}, errdefs.New(errdefs.NotFound, op, err)
	}
	config, err := s.store.ImageBigData(img.ID, meta.Husk.Config)
	if err != nil {
		return imageref.Record{}, mapped(op, err)
	}
	if got := digest.FromBytes(config).String(); got != meta.Husk.Config {
		return imageref.Record{}, errdefs.Newf(errdefs.NotFound, op, "the stored config is %s, not %s", got, meta.Husk.Config)
	}
	if r.Image, err = manifestonly.ParseConfig(config); err != nil {
		return imageref.Record{}, errdefs.New(errdefs.NotFound, op, err)
	}
	for _, size := range img.BigDataSizes {
		r.StoredBytes += size
	}
	return r, nil
}
