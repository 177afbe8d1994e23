// Package cstore keeps layer-less records in containers/storage, in the store of
// a stock CRI-O that runs at the same time.
//
// A record is an ordinary image without a layer and without a name. Its ID is
// derived from the manifest digest, never from the config, so that it meets no
// full pull of the same image; its big data has the keys and its metadata the
// fields that containers/image's storage transport reads, so CRI-O itself reads
// the config, the annotations and the signatures from it.
//
// containers/storage saves an image before its big data. Whoever dies in between
// leaves half a record, and stock CRI-O then fails to list any image at all. So
// the manifest and the config are put in place first (see [Store.seed]); readers
// here skip half a record, Put completes it, and Check removes it.
package cstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/internal/flock"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/internal/refset"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// lockName is the file in the graph root that Husk's writers lock.
const lockName = "husk.lock"

// Options say which store to open; they are those of the CRI-O that shares it.
type Options struct {
	// GraphRoot and RunRoot are CRI-O's root and runroot. Both are needed.
	GraphRoot, RunRoot string
	// Driver is CRI-O's storage_driver; "" lets containers/storage find it.
	Driver string
	// DriverOptions are CRI-O's storage_option.
	DriverOptions []string
	// ImageStore is CRI-O's imagestore, a separate place for images; "" for none.
	ImageStore string
}

// SystemOptions is what storage.conf says, from which CRI-O starts too.
func SystemOptions() (Options, error) {
	system, err := storage.DefaultStoreOptions()
	if err != nil {
		return Options{}, errdefs.New(errdefs.InvalidArgument, "read storage.conf", err)
	}
	return Options{
		GraphRoot: system.GraphRoot, RunRoot: system.RunRoot, ImageStore: system.ImageStore,
		Driver: system.GraphDriverName, DriverOptions: system.GraphDriverOptions,
	}, nil
}

// Store is a [manifestonly.Store] on containers/storage. It may be used by many
// goroutines and processes at once.
type Store struct {
	store  storage.Store
	lock   *flock.Mutex
	images string // where containers/storage keeps the big data
	cache  cache
}

var (
	_ manifestonly.Store  = (*Store)(nil)
	_ manifestonly.Holder = (*Store)(nil)
)

// Open opens the store. It mounts nothing, and there is nothing to close: the
// mounts of a graph driver belong to CRI-O.
func Open(opts Options) (*Store, error) {
	if opts.GraphRoot == "" || opts.RunRoot == "" {
		return nil, errdefs.Newf(errdefs.InvalidArgument, "open image store", "graph root and run root are needed")
	}
	driverOptions := slices.Clone(opts.DriverOptions)
	if opts.Driver == "overlay" {
		// Without this the driver would bind its home over itself.
		driverOptions = append(driverOptions, "overlay.skip_mount_home=true")
	}
	s, err := storage.GetStore(storage.StoreOptions{
		GraphRoot:          opts.GraphRoot,
		RunRoot:            opts.RunRoot,
		ImageStore:         opts.ImageStore,
		GraphDriverName:    opts.Driver,
		GraphDriverOptions: driverOptions,
	})
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "open image store "+opts.GraphRoot, err)
	}
	root := s.GraphRoot()
	if opts.ImageStore != "" {
		root = opts.ImageStore
	}
	images := filepath.Join(root, s.GraphDriverName()+"-images")
	changes, err := changesOf(s, opts, images)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "open image store "+opts.GraphRoot, err)
	}
	return &Store{
		store:  s,
		lock:   flock.NewMutex(filepath.Join(s.GraphRoot(), lockName)),
		images: images,
		cache:  cache{changes: changes, view: &view{}},
	}, nil
}

// Get implements [manifestonly.Reader].
func (s *Store) Get(ctx context.Context, id imageref.StorageID) (imageref.Record, error) {
	op := "read record " + id.String()
	v, err := s.view(ctx)
	if err != nil {
		return imageref.Record{}, err
	}
	e := v.entries[id.String()]
	if e == nil {
		return imageref.Record{}, errdefs.Newf(errdefs.NotFound, op, "the store has no such record of this version of husk")
	}
	return e.record, e.err
}

// List implements [manifestonly.Reader]. What it returns is the caller's own as far
// as the order and the number of the records go; what they refer to is shared.
func (s *Store) List(ctx context.Context) ([]imageref.Record, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Clone(v.records), nil
}

// Remove implements [manifestonly.Remover].
func (s *Store) Remove(ctx context.Context, id imageref.StorageID) error {
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	return s.remove(id)
}

// RemoveReference implements [manifestonly.Remover].
func (s *Store) RemoveReference(ctx context.Context, ref imageref.Reference) error {
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	record, err := manifestonly.Named(ctx, s, ref)
	if err != nil {
		return err
	}
	rest, _ := refset.Drop(record, ref)
	if len(rest) == 0 {
		return s.remove(record.StorageID)
	}
	_, meta, err := s.find(record.StorageID)
	if err != nil {
		return err
	}
	meta.Husk.References = encodeReferences(rest)
	return s.setMetadata(record.StorageID.String(), *meta)
}

// find returns the record with the given ID, whole or half.
func (s *Store) find(id imageref.StorageID) (*storage.Image, *metadata, error) {
	op := "read record " + id.String()
	if id.IsZero() { // "" would be the prefix of any ID
		return nil, nil, errdefs.Newf(errdefs.InvalidArgument, op, "no record ID")
	}
	img, err := s.store.Image(id.String())
	if err != nil {
		return nil, nil, mapped(op, err)
	}
	meta, err := parseMetadata(img)
	if err == nil && meta == nil {
		err = errors.New("the image with this ID is not a record of this version of husk")
	}
	if err != nil {
		return nil, nil, errdefs.New(errdefs.NotFound, op, err)
	}
	return img, meta, nil
}

// remove removes a record, whole or half. The caller holds the lock.
func (s *Store) remove(id imageref.StorageID) error {
	if _, _, err := s.find(id); err != nil {
		return err
	}
	return s.delete(id.String())
}

func (s *Store) delete(id string) error {
	if _, err := s.store.DeleteImage(id, true); err != nil {
		return mapped("remove record "+id, err)
	}
	return nil
}

// setMetadata replaces what a record says. The caller holds the lock.
func (s *Store) setMetadata(id string, meta metadata) error {
	text, err := meta.encode()
	if err != nil {
		return errdefs.New(errdefs.Internal, "write record "+id, err)
	}
	if err := s.store.SetMetadata(id, text); err != nil {
		return mapped("write record "+id, err)
	}
	return nil
}

// mapped gives an error of containers/storage its kind.
func mapped(op string, err error) error {
	kind := errdefs.Internal
	switch {
	case errors.Is(err, storage.ErrImageUnknown), errors.Is(err, storage.ErrNotAnImage),
		errors.Is(err, fs.ErrNotExist): // a big data item that was never written, or is gone
		kind = errdefs.NotFound
	case errors.Is(err, storage.ErrImageUsedByContainer):
		kind = errdefs.InUse
	}
	return errdefs.New(kind, op, fmt.Errorf("containers/storage: %w", err))
}
