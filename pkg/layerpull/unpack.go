package layerpull

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// unpacker unpacks one layer into a directory of its own, with whiteouts as
// overlayfs has them.
//
// As CRI-O does, it makes the device nodes that a layer has: what may be opened
// is for the container's device cgroup to say, and overlayfs whiteouts are
// device nodes too.
type unpacker struct {
	dir    string
	limits Limits
	room   *atomic.Int64
	// buf is what file contents pass through.
	buf []byte

	tree *tree
	// userns is set in a user namespace, where some things cannot be made.
	userns bool
	// inherit is set when a directory hands its ACL to what is made in it.
	inherit bool
	// opaques and whiteouts count what was made of each, and swept the entries that
	// were searched for whiteouts.
	opaques, whiteouts, swept int
}

// unpacked says what was in a layer.
type unpacked struct {
	// size is the bytes of its files.
	size int64
	// root is set when it has an entry for "/".
	root bool
}

// unpack reads one tar archive, not what follows it.
func (u *unpacker) unpack(ctx context.Context, r io.Reader) (got unpacked, err error) {
	if u.tree, err = openTree(u.dir); err != nil {
		return unpacked{}, err
	}
	u.userns = inUserNamespace()
	got, err = u.entries(ctx, tar.NewReader(r))
	// The times of directories that are still open.
	if closeErr := u.tree.close(); err == nil {
		err = closeErr
	}
	return got, err
}

func (u *unpacker) entries(ctx context.Context, tr *tar.Reader) (unpacked, error) {
	none, got := unpacked{}, unpacked{}
	for entries := 1; ; entries++ {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return none, err
		}
		if entries > u.limits.LayerEntries {
			return none, errdefs.Newf(errdefs.TooLarge, "unpack", "the layer has more than %d entries", u.limits.LayerEntries)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue // git archive writes one; it is no file
		}
		if err := checkHeader(hdr); err != nil {
			return none, err
		}
		// A sparse file's size is not bounded by the bytes in the stream.
		if got.size += hdr.Size; got.size > u.limits.LayerBytes || got.size < 0 {
			return none, layerTooLarge()
		}
		if u.room.Add(-hdr.Size) < 0 {
			return none, errdefs.Newf(errdefs.TooLarge, "unpack", "the layer store may hold %d bytes in all, and the layers need more", u.limits.StoreBytes)
		}
		name := cleanName(hdr.Name)
		got.root = got.root || name == ""
		if err := u.entry(name, hdr, tr); err != nil {
			return none, fmt.Errorf("entry %.200q: %w", hdr.Name, err)
		}
	}
}

// cleanName returns the name of an entry relative to the root, "" for the root.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// checkHeader refuses entries that no builder makes but an attacker would.
func checkHeader(hdr *tar.Header) error {
	const op = "unpack malformed layer"
	if len(hdr.Name) > maxNameBytes || len(hdr.Linkname) > maxNameBytes {
		return errdefs.Newf(errdefs.TooLarge, "unpack", "a path has more than %d bytes", maxNameBytes)
	}
	if strings.Count(cleanName(hdr.Name), "/") >= maxDepth {
		return errdefs.Newf(errdefs.TooLarge, "unpack", "an entry lies deeper than %d directories", maxDepth)
	}
	if hdr.Size < 0 {
		return errdefs.Newf(errdefs.NotAnImage, op, "an entry has the size %d", hdr.Size)
	}
	for _, part := range strings.Split(hdr.Name, "/") {
		if part == ".." {
			return errdefs.Newf(errdefs.NotAnImage, op, "entry %q climbs with \"..\"", hdr.Name)
		}
	}
	base := path.Base(path.Clean("/" + hdr.Name))
	if target, ok := strings.CutPrefix(base, whiteoutPrefix); ok && base != whiteoutOpaque {
		if target == "" || target == "." || target == ".." {
			return errdefs.Newf(errdefs.NotAnImage, op, "whiteout %q names no file", hdr.Name)
		}
	}
	// The greatest means "leave as it is" to chown(2).
	for _, id := range []int{hdr.Uid, hdr.Gid} {
		if id < 0 || int64(id) >= 1<<32-1 {
			return errdefs.Newf(errdefs.NotAnImage, op, "entry %q has the owner %d:%d", hdr.Name, hdr.Uid, hdr.Gid)
		}
	}
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
			return errdefs.Newf(errdefs.NotAnImage, op, "entry %q is no device that there can be: %d:%d", hdr.Name, hdr.Devmajor, hdr.Devminor)
		}
	}
	return nil
}

// entry makes one entry of the archive.
func (u *unpacker) entry(name string, hdr *tar.Header, r io.Reader) error {
	if len(u.tree.open) > maxOpenDirs {
		if err := u.tree.flush(); err != nil {
			return err
		}
	}
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return errdefs.Newf(errdefs.NotAnImage, "unpack malformed layer", "the root is no directory")
		}
		return u.finishDir(u.tree.open[""], hdr, true)
	}
	parent, base := path.Split(name)
	d, err := u.tree.dir(strings.TrimSuffix(parent, "/"), true)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(d, base)
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(d, base, hdr, r)
	case tar.TypeDir:
		return u.directory(d, base, hdr)
	case tar.TypeLink:
		return u.hardLink(d, base, hdr)
	case tar.TypeSymlink:
		err = u.tree.place(d, base, func() error { return unix.Symlinkat(hdr.Linkname, d.fd, base) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = u.node(d, base, hdr)
	default:
		return errdefs.Newf(errdefs.NotAnImage, "unpack malformed layer", "it has the unknown type %q", hdr.Typeflag)
	}
	if err != nil {
		return err
	}
	return u.finish(d, base, hdr)
}
