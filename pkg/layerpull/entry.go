package layerpull

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// file makes a regular file with its content.
func (u *unpacker) file(d *dir, base string, hdr *tar.Header, r io.Reader) (err error) {
	fd, err := u.create(d, base)
	if err != nil {
		return err
	}
	defer func() {
		if e := unix.Close(fd); err == nil {
			err = e
		}
	}()
	if isSparse(hdr) {
		err = u.writeSparse(fd, r)
	} else {
		err = u.write(fd, r)
	}
	if err != nil {
		return err
	}
	if err := u.own(fd, hdr); err != nil {
		return err
	}
	return unix.UtimesNanoAt(d.fd, base, times(hdr), unix.AT_SYMLINK_NOFOLLOW)
}

// create opens a new file, in the place of whatever had the name.
func (u *unpacker) create(d *dir, base string) (fd int, err error) {
	err = u.tree.place(d, base, func() error {
		fd, err = unix.Openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	return fd, err
}

func (u *unpacker) write(fd int, r io.Reader) error {
	for {
		n, err := r.Read(u.buf)
		if werr := writeAll(fd, u.buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// isSparse reports whether the archive has the file in a sparse form, old GNU or
// PAX; archive/tar reads its holes as zeros.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for name := range hdr.PAXRecords {
		if strings.HasPrefix(name, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// writeSparse leaves a hole for each block of zeros.
func (u *unpacker) writeSparse(fd int, r io.Reader) error {
	var size int64
	for {
		n, err := fill(r, u.buf)
		for at := 0; at < n; at += holeBytes {
			block := u.buf[at:min(at+holeBytes, n)]
			if bytes.Count(block, []byte{0}) == len(block) {
				if _, err := unix.Seek(fd, int64(len(block)), unix.SEEK_CUR); err != nil {
					return err
				}
				continue
			}
			if err := writeAll(fd, block); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) {
			return unix.Ftruncate(fd, size) // it may end in a hole
		}
		if err != nil {
			return err
		}
	}
}

// directory makes a directory, or changes the one that is there.
func (u *unpacker) directory(d *dir, base string, hdr *tar.Header) error {
	var existed, hidden bool
	err := unix.Mkdirat(d.fd, base, 0o700)
	if existed = errors.Is(err, unix.EEXIST); existed {
		err = nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, base, openDir, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		// In the place of a whiteout, what that hid stays hidden.
		existed, hidden = false, isWhiteout(d.fd, base)
		if err := u.tree.remove(d, base); err != nil {
			return err
		}
		if err := unix.Mkdirat(d.fd, base, 0o700); err != nil {
			return err
		}
		fd, err = unix.Openat(d.fd, base, openDir, 0)
	}
	if err != nil {
		return err
	}
	child, err := u.tree.keep(fd, path.Join(d.path, base))
	if err != nil {
		return err
	}
	if err := u.finishDir(child, hdr, existed); err != nil || !hidden {
		return err
	}
	return u.opaque(child)
}

// finishDir gives a directory what its entry says. Its times are set when it is
// closed: entries made in it would change them.
func (u *unpacker) finishDir(d *dir, hdr *tar.Header, existed bool) error {
	if existed {
		if err := clearXattrs(d.fd); err != nil {
			return err
		}
	}
	d.times = times(hdr)
	return u.own(d.fd, hdr)
}

// hardLink links to a file of this layer: one below it is out of its reach.
func (u *unpacker) hardLink(d *dir, base string, hdr *tar.Header) error {
	dirName, target := path.Split(cleanName(hdr.Linkname))
	from, err := u.tree.dir(strings.TrimSuffix(dirName, "/"), false)
	if err != nil {
		return err
	}
	if target == "" || from == d && target == base {
		return errdefs.Newf(errdefs.NotAnImage, "unpack malformed layer", "it is a link to itself or to the root")
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from.fd, target, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return errdefs.Newf(errdefs.NotAnImage, "unpack malformed layer", "it is a hard link to a directory")
	}
	return u.tree.place(d, base, func() error { return unix.Linkat(from.fd, target, d.fd, base, 0) })
}

// node makes a device or a FIFO.
func (u *unpacker) node(d *dir, base string, hdr *tar.Header) error {
	kind, dev := uint32(unix.S_IFIFO), uint64(0)
	if hdr.Typeflag != tar.TypeFifo {
		kind, dev = unix.S_IFCHR, unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	if hdr.Typeflag == tar.TypeBlock {
		kind = unix.S_IFBLK
	}
	err := u.tree.place(d, base, func() error { return unix.Mknodat(d.fd, base, kind|0o600, int(dev)) })
	if errors.Is(err, unix.EPERM) && u.userns && hdr.Typeflag != tar.TypeFifo {
		// A user namespace has no devices: a file that nobody can open stands for it.
		fd, err := u.create(d, base)
		if err != nil {
			return err
		}
		hdr.Mode = 0
		return unix.Close(fd)
	}
	return err
}
