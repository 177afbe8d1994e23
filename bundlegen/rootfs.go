package bundlegen

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// maxFileBytes bounds the passwd and the group file: a hostile image may carry one of
// any size, and it is read into the memory of a shim that serves the whole pod.
const maxFileBytes = 4 << 20

// dirMode is the mode of directories made in a rootfs, as CRI-O and runc make them.
const dirMode = 0o755

// rootDir is an unpacked root filesystem. Its content is hostile: every path is first
// resolved as if the rootfs were "/" (an absolute symlink is normal in an image), and
// then used through an [os.Root], which no symlink leads out of.
type rootDir struct {
	root *os.Root
	path string
}

func openRootDir(rootfs string) (rootDir, error) {
	if !filepath.IsAbs(rootfs) {
		return rootDir{}, errdefs.Newf(errdefs.InvalidArgument, "open rootfs", "%q is not an absolute path", rootfs)
	}
	rootfs = filepath.Clean(rootfs)
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return rootDir{}, errdefs.New(errdefs.Internal, "open rootfs", err)
	}
	return rootDir{root: root, path: rootfs}, nil
}

func (d rootDir) close() error { return d.root.Close() }

// resolve returns name without symlinks, relative to the rootfs.
func (d rootDir) resolve(name string) (string, error) {
	full, err := securejoin.SecureJoin(d.path, name)
	if err != nil {
		return "", fmt.Errorf("resolve %s in rootfs: %w", name, err)
	}
	rel, err := filepath.Rel(d.path, full)
	if err != nil {
		return "", fmt.Errorf("resolve %s in rootfs: %w", name, err)
	}
	return rel, nil
}

// readFile returns the content of a regular file, or nothing when there is none.
// Anything else in its place is an error: a FIFO or a device is never opened for long
// enough to wait on it.
func (d rootDir) readFile(name string) (content []byte, err error) {
	rel, err := d.resolve(name)
	if err != nil {
		return nil, err
	}
	info, err := d.root.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s in rootfs: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s in rootfs is not a regular file", name)
	}
	// Non-blocking and checked again: the file may have been swapped for a FIFO.
	f, err := d.root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s in rootfs: %w", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err = f.Stat(); err != nil {
		return nil, fmt.Errorf("look at %s in rootfs: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s in rootfs is not a regular file", name)
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, io.LimitReader(f, maxFileBytes+1)); err != nil {
		return nil, fmt.Errorf("read %s in rootfs: %w", name, err)
	}
	if buf.Len() > maxFileBytes {
		return nil, errdefs.Newf(errdefs.TooLarge, "read "+name+" in rootfs", "over %d bytes", maxFileBytes)
	}
	return buf.Bytes(), nil
}

// mkdirAll makes the directory name and its missing parents. What it makes belongs to
// uid:gid; what is there stays as it is.
func (d rootDir) mkdirAll(name string, uid, gid uint32) error {
	rel, err := d.resolve(name)
	if err != nil {
		return err
	}
	at, err := d.root.OpenRoot(".")
	for _, part := range strings.Split(rel, "/") {
		if err != nil {
			break
		}
		at, err = mkdirOne(at, part, uid, gid)
	}
	if err != nil {
		return fmt.Errorf("make directory %s in rootfs: %w", name, err)
	}
	return at.Close()
}

// mkdirOne closes parent and returns its subdirectory name, made when missing.
func mkdirOne(parent *os.Root, name string, uid, gid uint32) (_ *os.Root, err error) {
	defer func() { err = errors.Join(err, parent.Close()) }()
	info, err := parent.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeDir(parent, name, uid, gid); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case !info.IsDir(): // OpenRoot would wait for a writer of a FIFO
		return nil, fmt.Errorf("%s: %w", name, syscall.ENOTDIR)
	}
	return parent.OpenRoot(name)
}

func makeDir(parent *os.Root, name string, uid, gid uint32) error {
	if err := parent.Mkdir(name, dirMode); err != nil {
		return err
	}
	if err := parent.Chmod(name, dirMode); err != nil { // whatever the umask is
		return err
	}
	return parent.Lchown(name, int(uid), int(gid))
}
