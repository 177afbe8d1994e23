// Package pod names the files that a pod's shim keeps on the host, and holds what
// must be known of its containers when the shim itself is gone.
//
// A pod's directory holds no layer data: the store is an empty directory on which the
// shim mounts a tmpfs, or a directory of a disk, in its own mount namespace.
package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// DefaultStateDir is where pods keep their state. It is volatile: a pod does not
// outlive the machine.
const DefaultStateDir = "/run/husk"

const (
	dirMode  = 0o700
	fileMode = 0o600
	// maxRecord bounds what is read of a container's record, a file that only this
	// package writes: a larger one is damaged.
	maxRecord = 64 << 10
	recordExt = ".json"
)

// idPattern is what containerd takes for an identifier, shortened to what fits in
// a socket's path: an ID is a part of paths and must not lead out of them.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// ValidID reports an ID that cannot be a part of a path.
func ValidID(id string) error {
	if !idPattern.MatchString(id) {
		return errdefs.Newf(errdefs.InvalidArgument, "container ID", "%q is not an identifier", id)
	}
	return nil
}

// Pod is the state of one pod on the host. Its methods may be called at once by
// the goroutines of one process; the processes of a pod take turns.
type Pod struct {
	id, dir string
	// mu orders changes of records, so that an exit that comes late does not bring
	// a removed record back.
	mu *sync.Mutex
}

// New returns the pod with the given sandbox ID below a state directory; empty is
// [DefaultStateDir]. Nothing is created.
func New(stateDir, sandboxID string) (Pod, error) {
	if err := ValidID(sandboxID); err != nil {
		return Pod{}, err
	}
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	return Pod{id: sandboxID, dir: filepath.Join(stateDir, "pods", sandboxID), mu: &sync.Mutex{}}, nil
}

// ID returns the sandbox ID.
func (p Pod) ID() string { return p.id }

// Dir returns the pod's directory.
func (p Pod) Dir() string { return p.dir }

// Socket returns the path that CRI-O connects to.
func (p Pod) Socket() string { return filepath.Join(p.dir, "shim.sock") }

// Address returns [Pod.Socket] as CRI-O wants it.
func (p Pod) Address() string { return "unix://" + p.Socket() }

// TaskSocket returns the path on which the task service itself listens.
func (p Pod) TaskSocket() string { return filepath.Join(p.dir, "task.sock") }

// Store returns the directory on which the shim mounts the pod's store.
func (p Pod) Store() string { return filepath.Join(p.dir, "store") }

// Rootfs returns the directory that user namespaces can enter: a container's own root
// cannot search the pod's directory. The shim covers it, in its own mount namespace, with
// the root file systems of such containers; on the host it is empty, and all pods share it.
func (p Pod) Rootfs() string { return filepath.Dir(filepath.Dir(p.dir)) + "-rootfs" }

func (p Pod) records() string { return filepath.Join(p.dir, "containers") }

// Create makes the pod's directories.
func (p Pod) Create() error {
	for _, dir := range []string{p.records(), p.Store()} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return fmt.Errorf("create the state of pod %s: %w", p.id, err)
		}
	}
	return nil
}

// Remove removes the pod's directory, and its store on disk if it has one. The store
// must not be mounted where the caller sees it.
func (p Pod) Remove() error {
	// Not RemoveAll on the store: were it mounted here, that would delete layers
	// which the pod still runs on.
	if err := os.Remove(p.Store()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the store of pod %s: %w", p.id, err)
	}
	// Before the directory, which says where it is.
	if err := p.RemoveStore(); err != nil {
		return err
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("remove the state of pod %s: %w", p.id, err)
	}
	return nil
}

func (p Pod) recordFile(id string) string { return filepath.Join(p.records(), id+recordExt) }

// Put writes a container's record, atomically.
func (p Pod) Put(r Record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.put(r)
}

// Update changes a container's record; a NotFound error when there is none.
func (p Pod) Update(id string, change func(Record) Record) (Record, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := p.Get(id)
	if err != nil {
		return Record{}, err
	}
	r = change(r)
	return r, p.put(r)
}

func (p Pod) put(r Record) error {
	if err := ValidID(r.ID); err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the record of container %s: %w", r.ID, err)
	}
	if err := WriteFile(p.recordFile(r.ID), data, fileMode); err != nil {
		return fmt.Errorf("write the record of container %s: %w", r.ID, err)
	}
	return nil
}

// Get reads a container's record; a NotFound error when there is none.
func (p Pod) Get(id string) (Record, error) {
	op := "read the record of container " + id
	if err := ValidID(id); err != nil {
		return Record{}, err
	}
	data, err := ReadFile(p.recordFile(id), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, errdefs.New(errdefs.NotFound, op, err)
	}
	if err != nil {
		return Record{}, errdefs.New(errdefs.Internal, op, err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, errdefs.New(errdefs.Internal, op, err)
	}
	return r, nil
}

// Drop removes a container's record. One that is not there is no error.
func (p Pod) Drop(id string) error {
	if err := ValidID(id); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := os.Remove(p.recordFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of container %s: %w", id, err)
	}
	return nil
}

// List returns the records of the pod's containers. A pod that is not there has none.
func (p Pod) List() ([]Record, error) {
	entries, err := os.ReadDir(p.records())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the containers of pod %s: %w", p.id, err)
	}
	var records []Record
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordExt)
		if !ok {
			continue // a temporary file of a killed write
		}
		r, err := p.Get(id)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

// ReadFile reads a file of at most limit bytes; a longer one is a TooLarge error.
func ReadFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errdefs.Newf(errdefs.TooLarge, "read "+name, "more than %d bytes", limit)
	}
	return data, nil
}

// WriteFile replaces a file atomically: a reader sees the old content or the new.
// It does not sync, because the state does not outlive the machine.
func WriteFile(name string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
