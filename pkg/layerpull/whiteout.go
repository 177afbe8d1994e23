package layerpull

import (
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// whiteoutPrefix begins the name of an entry that removes another, and
// whiteoutOpaque is one that removes all of its directory (OCI image spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// opaqueXattr is how overlayfs has an opaque directory.
const opaqueXattr = "trusted.overlay.opaque"

func setOpaque(fd int) error { return unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0) }

func isOpaque(fd int) bool {
	var value [2]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// isWhiteout reports whether name is what overlayfs takes for a whiteout.
func isWhiteout(at int, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// whiteout applies an entry whose name has the prefix of whiteouts. They are
// about the layers below: what this layer has itself stays, in whichever order
// the archive names the two.
func (u *unpacker) whiteout(d *dir, base string) error {
	if base == whiteoutOpaque {
		return u.opaque(d)
	}
	target := strings.TrimPrefix(base, whiteoutPrefix)
	if u.opaques > 0 {
		// A whiteout inside an opaque directory hides nothing, but overlayfs lists it.
		inside, err := u.insideOpaque(d)
		if inside || err != nil {
			return err
		}
	}
	err := unix.Mknodat(d.fd, target, unix.S_IFCHR|0o666, 0)
	if err == nil {
		u.whiteouts++
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Openat(d.fd, target, openDir, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // a file hides all that is below it
	}
	if err != nil {
		return err
	}
	child, err := u.tree.keep(fd, path.Join(d.path, target))
	if err != nil {
		return err
	}
	return u.opaque(child)
}

// opaque makes a directory hide all that is below it.
func (u *unpacker) opaque(d *dir) error {
	if isOpaque(d.fd) {
		return nil
	}
	if err := setOpaque(d.fd); err != nil {
		return err
	}
	u.opaques++
	if u.whiteouts == 0 {
		return nil
	}
	return u.sweep(d)
}

func (u *unpacker) insideOpaque(d *dir) (bool, error) {
	for {
		if isOpaque(d.fd) {
			return true, nil
		}
		if d.path == "" {
			return false, nil
		}
		parent := path.Dir(d.path)
		if parent == "." {
			parent = ""
		}
		var err error
		if d, err = u.tree.dir(parent, false); err != nil {
			return false, err
		}
	}
}

// sweep removes the whiteouts beneath a directory that has become opaque.
func (u *unpacker) sweep(d *dir) error {
	fd, err := unix.Openat(d.fd, ".", openDir, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "layer")
	defer func() { _ = f.Close() }()
	for {
		entries, err := f.ReadDir(sweepBatch)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if u.swept += len(entries); u.swept > u.limits.LayerEntries*maxSweeps {
			return errdefs.Newf(errdefs.TooLarge, "unpack", "the layer has too many opaque directories with whiteouts in them")
		}
		for _, e := range entries {
			switch {
			case e.Type()&os.ModeCharDevice != 0 && isWhiteout(fd, e.Name()):
				err = unix.Unlinkat(fd, e.Name(), 0)
			case e.IsDir():
				err = u.sweepChild(d, e.Name())
			}
			if err != nil {
				return err
			}
		}
	}
}

// sweepChild keeps the times of what it sweeps.
func (u *unpacker) sweepChild(d *dir, name string) error {
	fd, err := unix.Openat(d.fd, name, openDir, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return err
	}
	child := &dir{fd: fd, path: path.Join(d.path, name), times: []unix.Timespec{st.Atim, st.Mtim}}
	return errors.Join(u.sweep(child), child.close())
}
