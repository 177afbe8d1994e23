package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	dirMode    = 0o755
	configMode = 0o644
	// tempConfig is config.json while it is written.
	tempConfig = ".config.json.husk"
	// confined is how every path below the parent is resolved: without any link, and
	// never out of it.
	confined = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
)

// dir is a bundle's directory. Everything in it is named relative to its descriptor, so
// that nobody can put another directory in its place.
type dir struct {
	path   string
	parent int // the descriptor of the directory it is in
	fd     int
	rootfs int // -1 before openRootfs
	// made and madeRootfs say that the directories were not there before.
	made, madeRootfs bool
}

// openDir opens a bundle's directory below the parent. Where create says so it makes the
// directory, but no other above it; else one that is missing is an error that wraps
// os.ErrNotExist.
func (k *Keeper) openDir(path string, create bool) (_ *dir, err error) {
	const op = "open bundle"
	rel, err := k.relative(path)
	if err != nil {
		return nil, err
	}
	at, err := unix.Open(k.parent, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	d := &dir{path: path, parent: -1, fd: at, rootfs: -1}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	parts := strings.Split(rel, "/")
	for i, part := range parts {
		next, err := openBelow(d.fd, part, 0)
		if errors.Is(err, unix.ENOENT) && create && i == len(parts)-1 {
			err = unix.Mkdirat(d.fd, part, dirMode)
			if d.made = err == nil; d.made || errors.Is(err, unix.EEXIST) {
				next, err = openBelow(d.fd, part, 0)
			}
		}
		switch {
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EXDEV):
			return nil, errdefs.Newf(errdefs.InvalidArgument, op, "%s: %s is a link, or no directory", path, part)
		case errors.Is(err, unix.ENOENT):
			return nil, errdefs.New(errdefs.InvalidArgument, op, fmt.Errorf("%s: %s: %w", path, part, err))
		case err != nil:
			return nil, errdefs.New(errdefs.Internal, op, fmt.Errorf("%s: %w", path, err))
		}
		if d.parent >= 0 {
			_ = unix.Close(d.parent)
		}
		d.parent, d.fd = d.fd, next
	}
	return d, nil
}

// relative returns the path below the parent.
func (k *Keeper) relative(path string) (string, error) {
	const op = "check bundle path"
	switch {
	case len(path) > maxPath:
		return "", errdefs.Newf(errdefs.InvalidArgument, op, "over %d bytes", maxPath)
	case !filepath.IsAbs(path):
		return "", errdefs.Newf(errdefs.InvalidArgument, op, "%q is not absolute", path)
	case filepath.Clean(path) != path || strings.ContainsRune(path, 0):
		return "", errdefs.Newf(errdefs.InvalidArgument, op, "%q is not clean", path)
	}
	rel, ok := strings.CutPrefix(path, strings.TrimSuffix(k.parent, "/")+"/")
	if !ok {
		return "", errdefs.Newf(errdefs.InvalidArgument, op, "%q is not below %s", path, k.parent)
	}
	for _, other := range k.outside {
		if path == other || strings.HasPrefix(path, other+"/") || strings.HasPrefix(other, path+"/") {
			return "", errdefs.Newf(errdefs.InvalidArgument, op, "%q is where Husk keeps its own files", path)
		}
	}
	return rel, nil
}

func openBelow(at int, name string, resolve uint64) (int, error) {
	return unix.Openat2(at, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: confined | resolve})
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (d *dir) close() {
	for _, fd := range []int{d.parent, d.fd, d.rootfs} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// free refuses a bundle that has a config.json, be it a dangling link.
func (d *dir) free() error {
	const op = "check bundle"
	var st unix.Stat_t
	err := unix.Fstatat(d.fd, configFile, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil:
		return errdefs.Newf(errdefs.InUse, op, "%s has a %s", d.path, configFile)
	case !errors.Is(err, unix.ENOENT):
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

// openRootfs opens the directory that will be mounted over.
func (d *dir) openRootfs() error {
	const op = "open rootfs of bundle"
	err := unix.Mkdirat(d.fd, rootfsDir, dirMode)
	if d.madeRootfs = err == nil; err != nil && !errors.Is(err, unix.EEXIST) {
		return errdefs.New(errdefs.Internal, op, err)
	}
	fd, err := openBelow(d.fd, rootfsDir, unix.RESOLVE_NO_XDEV)
	switch {
	case errors.Is(err, unix.EXDEV):
		return errdefs.Newf(errdefs.InUse, op, "something is mounted at %s/%s", d.path, rootfsDir)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return errdefs.Newf(errdefs.InvalidArgument, op, "%s/%s is a link, or no directory", d.path, rootfsDir)
	case err != nil:
		return errdefs.New(errdefs.Internal, op, err)
	}
	d.rootfs = fd
	return nil
}

// mounted opens what is now mounted at the rootfs.
func (d *dir) mounted() (int, error) {
	fd, err := openBelow(d.fd, rootfsDir, 0)
	if err != nil {
		return -1, errdefs.New(errdefs.Internal, "open rootfs of bundle", err)
	}
	return fd, nil
}

// writeConfig makes config.json in one step, and never in place of another.
func (d *dir) writeConfig(data []byte) error {
	const op = "write " + configFile
	if err := unix.Unlinkat(d.fd, tempConfig, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return errdefs.New(errdefs.Internal, op, err)
	}
	fd, err := unix.Openat(d.fd, tempConfig, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, configMode)
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	f := os.NewFile(uintptr(fd), tempConfig)
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = unix.Renameat2(d.fd, tempConfig, d.fd, configFile, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		_ = unix.Unlinkat(d.fd, tempConfig, 0) // the other error is the one to tell
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

func (d *dir) removeConfig() error { return d.unlink(d.fd, configFile, 0) }

func (d *dir) removeRootfs() error { return d.unlink(d.fd, rootfsDir, unix.AT_REMOVEDIR) }

// removeDir removes the bundle's directory, unless somebody put something into it.
func (d *dir) removeDir() error {
	return d.unlink(d.parent, filepath.Base(d.path), unix.AT_REMOVEDIR)
}

func (d *dir) unlink(at int, name string, flags int) error {
	err := unix.Unlinkat(at, name, flags)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return fmt.Errorf("remove %s of %s: %w", name, d.path, err)
}
