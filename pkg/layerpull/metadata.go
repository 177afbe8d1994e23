package layerpull

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// xattrRecord begins the PAX records that are extended attributes.
const xattrRecord = "SCHILY.xattr."

// overlayXattr begins the attributes that mean something to overlayfs. In a layer
// they are data, and are escaped as overlayfs does for its own lower layers.
const overlayXattr = "trusted.overlay."

// times returns an entry's access and modification time.
func times(hdr *tar.Header) []unix.Timespec {
	mtime := hdr.ModTime
	if mtime.IsZero() {
		mtime = time.Now()
	}
	atime := hdr.AccessTime
	if atime.IsZero() {
		atime = mtime
	}
	return []unix.Timespec{{Sec: atime.Unix(), Nsec: int64(atime.Nanosecond())}, {Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}}
}

func mode(hdr *tar.Header) uint32 { return uint32(hdr.Mode & 0o7777) }

// own gives an open file or directory its owner, mode and attributes, in this
// order: a change of owner clears set-user-ID bits and file capabilities.
func (u *unpacker) own(fd int, hdr *tar.Header) error {
	if u.inherit {
		if err := clearXattrs(fd); err != nil {
			return err
		}
	}
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, mode(hdr)); err != nil {
		return err
	}
	return u.setXattrs(hdr, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
}

// finish gives what cannot be opened, links, devices and FIFOs, its metadata.
func (u *unpacker) finish(d *dir, base string, hdr *tar.Header) error {
	if err := unix.Fchownat(d.fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(d.fd, base, mode(hdr), 0); err != nil {
			return err
		}
	}
	// There is no call that takes a directory and a name before Linux 6.13.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, base)
	err := u.setXattrs(hdr, func(name string, value []byte) error { return unix.Lsetxattr(path, name, value, 0) })
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(d.fd, base, times(hdr), unix.AT_SYMLINK_NOFOLLOW)
}

// setXattrs sets the attributes of an entry, as far as the file system has any.
func (u *unpacker) setXattrs(hdr *tar.Header, set func(name string, value []byte) error) error {
	count := 0
	for record, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		switch {
		case !ok, name == "security.selinux", name == "system.nfs4_acl":
			continue // labels and NFS ACLs are the node's business
		case strings.HasPrefix(name, overlayXattr):
			name = overlayXattr + "overlay." + strings.TrimPrefix(name, overlayXattr)
		case name == "system.posix_acl_default":
			u.inherit = true
		}
		if count++; count > maxXattrs {
			return errdefs.Newf(errdefs.TooLarge, "unpack", "it has more than %d extended attributes", maxXattrs)
		}
		err := set(name, []byte(value))
		if errors.Is(err, unix.ENOTSUP) || u.userns && errors.Is(err, unix.EPERM) {
			continue
		}
		if err != nil {
			return fmt.Errorf("set attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// clearXattrs removes the attributes that an entry does not have: those of an
// earlier entry, or inherited ones. What overlayfs needs stays.
func clearXattrs(fd int) error {
	size, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil || size == 0 {
		return err
	}
	buf := make([]byte, size)
	if size, err = unix.Flistxattr(fd, buf); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:size]), "\x00"), "\x00") {
		if name == opaqueXattr || name == "security.selinux" {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return nil
}

// inUserNamespace reports whether this process is root in a user namespace only.
func inUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	fields := strings.Fields(string(data))
	return len(fields) != 3 || fields[0] != "0" || fields[1] != "0" || fields[2] != "4294967295"
}
