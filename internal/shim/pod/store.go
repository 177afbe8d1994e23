package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// storeFile says where the pod's store on disk is: in the directory that it names,
	// under the pod's ID.
	storeFile = "store.path"
	// storesMark is a file in a directory of stores. Without it a sweep of a directory
	// that the configuration names by mistake would remove what is in it.
	storesMark = ".husk-stores"
	// maxStorePath bounds what is read of it: no path is longer.
	maxStorePath = unix.PathMax
	// othersWrite are the bits of a mode that let others than the owner write.
	othersWrite = 0o022
)

// CreateStore makes an empty directory for the pod's store on disk, in dir, and opens
// it. dir is made if it is missing; one that others than root may write to, or that has
// something in it and was not made here, is an error. What an earlier pod of that ID left
// goes. From now on whoever removes the pod removes its store too.
func (p Pod) CreateStore(dir string) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make the store of pod %s in %s: %w", p.id, dir, err)
		}
	}()
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, err
	}
	// From here on a symbolic link in the path is a trap, not the operator's wish.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	root, err := openStores(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := checkOwner(root); err != nil {
		return nil, err
	}
	if err := mark(root); err != nil {
		return nil, err
	}
	// Before the directory, so that a crash leaves none of which nobody knows.
	if err := WriteFile(p.storeFile(), []byte(dir), fileMode); err != nil {
		return nil, err
	}
	if err := removeIn(root, p.id); err != nil {
		return nil, err
	}
	if err := root.Mkdir(p.id, dirMode); err != nil {
		return nil, err
	}
	if err := root.Chmod(p.id, dirMode); err != nil { // whatever the umask is
		return nil, err
	}
	return root.Open(p.id)
}

// RemoveStore removes the pod's store on disk. A pod without one is no error. Its
// containers must be dead.
func (p Pod) RemoveStore() error {
	data, err := ReadFile(p.storeFile(), maxStorePath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = removeStore(string(data), p.id)
	}
	if err == nil {
		err = os.Remove(p.storeFile())
	}
	if err != nil {
		return fmt.Errorf("remove the store of pod %s: %w", p.id, err)
	}
	return nil
}

// SweepStores removes the stores in dir, a directory as for [Pod.CreateStore], of pods
// that are no more: the pods' state did not outlive the machine, their stores on disk did.
func (p Pod) SweepStores(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("remove the stores of earlier pods in %s: %w", dir, err)
		}
	}()
	dir, err = filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	root, err := openStores(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := checkOwner(root); err != nil {
		return err
	}
	if _, err := root.Lstat(storesMark); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if ValidID(e.Name()) != nil {
			continue // the mark, for one
		}
		// A pod has its state before it has a store, and loses it after.
		if _, err := os.Lstat(filepath.Join(filepath.Dir(p.dir), e.Name())); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, removeIn(root, e.Name()))
	}
	return errors.Join(errs...)
}

func (p Pod) storeFile() string { return filepath.Join(p.dir, storeFile) }

func removeStore(dir, id string) (err error) {
	root, err := openStores(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return removeIn(root, id)
}

func removeIn(root *os.Root, name string) (err error) {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return RemoveAll(dir, name)
}

// openStores opens a directory of stores, an absolute path in which nothing is a
// symbolic link. Nothing below is reached but through what it returns.
func openStores(dir string) (*os.Root, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%q is not absolute", dir)
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// checkOwner refuses a directory of stores to which others could write.
func checkOwner(root *os.Root) error {
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || info.Mode()&othersWrite != 0 {
		return fmt.Errorf("others than its owner may write to it: %w", fs.ErrPermission)
	}
	return nil
}

// mark says of an empty directory that it is one of stores, and refuses another.
func mark(root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return root.WriteFile(storesMark, nil, fileMode)
	}
	// Only now: what is there may be another pod's, which has marked it meanwhile.
	if _, err := root.Lstat(storesMark); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it has files that are not Husk's, such as %s", entries[0].Name())
	} else if err != nil {
		return err
	}
	return nil
}
