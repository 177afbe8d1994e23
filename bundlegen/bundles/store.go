package bundles

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/internal/flock"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// Files of Husk's in the graph root.
const (
	// lockName is what writers lock.
	lockName = "husk-containers.lock"
	// pendingName is the directory of the marks: see [Store.mark].
	pendingName = "husk-pending"
)

// Options say which store to open. They are those of manifestonly/cstore, field by
// field, so that one converts to the other.
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

// Store keeps containers in containers/storage. It may be used by many goroutines and
// processes at once.
type Store struct {
	store   storage.Store
	lock    *flock.Mutex
	pending string // the directory of the marks
}

// Open opens the store. It mounts nothing, and there is nothing to close: the mounts
// of a graph driver belong to CRI-O.
func Open(opts Options) (*Store, error) {
	if opts.GraphRoot == "" || opts.RunRoot == "" {
		return nil, errdefs.Newf(errdefs.InvalidArgument, "open container store", "graph root and run root are needed")
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
		return nil, errdefs.New(errdefs.Internal, "open container store "+opts.GraphRoot, err)
	}
	return &Store{
		store:   s,
		lock:    flock.NewMutex(filepath.Join(s.GraphRoot(), lockName)),
		pending: filepath.Join(s.GraphRoot(), pendingName),
	}, nil
}

// Dir returns the directory of the container with this whole ID that outlives a
// reboot. The template, config.json, is in it; the rest is the caller's to fill. It is
// removed with the container.
func (s *Store) Dir(id string) (string, error) {
	return s.directory(id, s.store.ContainerDirectory)
}

// RunDir returns the directory of the container with this whole ID that a reboot
// empties: its runtime's bundle. It is removed with the container.
func (s *Store) RunDir(id string) (string, error) {
	return s.directory(id, s.store.ContainerRunDirectory)
}

func (s *Store) directory(id string, find func(string) (string, error)) (string, error) {
	op := "find the directory of container " + id
	if _, err := s.find(op, id); err != nil {
		return "", err
	}
	dir, err := find(id)
	if err != nil {
		return "", mapped(op, err)
	}
	return dir, nil
}

// mapped gives an error of containers/storage its kind.
func mapped(op string, err error) error {
	kind := errdefs.Internal
	switch {
	case errors.Is(err, storage.ErrContainerUnknown), errors.Is(err, storage.ErrNotAContainer),
		errors.Is(err, storage.ErrNotAnID), errors.Is(err, storage.ErrImageUnknown),
		errors.Is(err, fs.ErrNotExist):
		kind = errdefs.NotFound
	case errors.Is(err, storage.ErrDuplicateName), errors.Is(err, storage.ErrDuplicateID):
		return exists(op, fmt.Sprintf("containers/storage: %v", err))
	}
	return errdefs.New(kind, op, fmt.Errorf("containers/storage: %w", err))
}

// exists is the error about something that is taken.
func exists(op, detail string) error {
	return errdefs.New(errdefs.InUse, op, fmt.Errorf("%s: %w", detail, ErrExists))
}
