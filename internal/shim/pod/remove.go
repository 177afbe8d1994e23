package pod

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeBatch is how many names of a directory are read at once: a container may have
// made millions in one.
const removeBatch = 1024

// RemoveAll removes what name is in dir, as [os.RemoveAll] does, but whatever a container
// has made of it: directories may lie deeper than there are descriptors for the way down,
// so what is below the second is moved up. It follows no link and enters no mount. Nothing
// of that name is no error, and another process may be at it too.
func RemoveAll(dir *os.File, name string) error {
	moved := 0
	return remove(dir, name, func(top *os.File, name string) error {
		return remove(top, name, func(sub *os.File, name string) error {
			if err := unix.Unlinkat(int(sub.Fd()), name, 0); !errors.Is(err, unix.EISDIR) {
				return removeError(name, err)
			}
			for {
				moved++
				err := unix.Renameat2(int(sub.Fd()), name, int(top.Fd()), strconv.Itoa(moved), unix.RENAME_NOREPLACE)
				if !errors.Is(err, unix.EEXIST) {
					return removeError(name, err)
				}
			}
		})
	})
}

// remove removes what name is in dir; if it is a directory, after inside has removed
// whatever is in it.
func remove(dir *os.File, name string, inside func(sub *os.File, name string) error) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); !errors.Is(err, unix.EISDIR) {
		return removeError(name, err)
	}
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return removeError(name, err)
	}
	sub := os.NewFile(uintptr(fd), name)
	defer func() { _ = sub.Close() }() // read only
	for {
		if err := empty(sub, inside); err != nil {
			return err
		}
		err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) { // another process has moved something up into it
			return removeError(name, err)
		}
	}
}

// empty calls inside for whatever is in dir until nothing is, or what is cannot be removed.
func empty(dir *os.File, inside func(sub *os.File, name string) error) error {
	for {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		removed, failed := false, error(nil)
		names, err := dir.Readdirnames(removeBatch)
		for ; err == nil; names, err = dir.Readdirnames(removeBatch) {
			for _, name := range names {
				err := inside(dir, name)
				removed, failed = removed || err == nil, cmp.Or(failed, err)
			}
		}
		if !errors.Is(err, io.EOF) {
			return removeError(dir.Name(), err)
		}
		if !removed {
			return failed
		}
	}
}

// removeError is nil for what is gone.
func removeError(name string, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return &fs.PathError{Op: "remove", Path: name, Err: err}
}
