package layerpull

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"

	securejoin "github.com/cyphar/filepath-securejoin"
	layerfs "github.com/opencontainers/umoci/oci/layer"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// whiteoutPrefix begins the name of an entry that removes another, and
// whiteoutOpaque is one that removes all of its directory (OCI image spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// unpacker unpacks one layer into a directory of its own. umoci does the work;
// the unpacker keeps from it what it must not see and counts.
//
// As umoci and CRI-O do, it makes the device nodes that a layer has: what may be
// opened is for the container's device cgroup to say, and overlayfs whiteouts are
// device nodes too.
type unpacker struct {
	dir    string
	limits Limits
	room   *atomic.Int64
}

// unpacked says what was in a layer.
type unpacked struct {
	// size is the bytes of its files.
	size int64
	// root is set when it has an entry for "/".
	root bool
}

// unpack reads one tar archive, not what follows it.
func (u *unpacker) unpack(ctx context.Context, r io.Reader) (unpacked, error) {
	none, got := unpacked{}, unpacked{}
	extractor := layerfs.NewTarExtractor(&layerfs.UnpackOptions{OnDiskFormat: layerfs.OverlayfsRootfs{}})
	tr := tar.NewReader(r)
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
			return none, errLayerTooLarge
		}
		if u.room.Add(-hdr.Size) < 0 {
			return none, errdefs.Newf(errdefs.TooLarge, "unpack", "the layer store may hold %d bytes in all, and the layers need more", u.limits.StoreBytes)
		}
		if err := makeParents(u.dir, hdr.Name); err != nil {
			return none, err
		}
		got.root = got.root || path.Clean("/"+hdr.Name) == "/"
		if err := extractor.UnpackEntry(u.dir, hdr, tr); err != nil {
			return none, err
		}
	}
}

// checkHeader refuses entries that no builder makes but an attacker would.
// umoci confines names and links to the directory anyway, save for a whiteout of
// "..", which v0.5.1 follows out of it.
func checkHeader(hdr *tar.Header) error {
	const op = "unpack malformed layer"
	if len(hdr.Name) > maxNameBytes || len(hdr.Linkname) > maxNameBytes {
		return errdefs.Newf(errdefs.TooLarge, "unpack", "a path has more than %d bytes", maxNameBytes)
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
	// SELinux labels and NFS ACLs are the node's business; umoci would skip each
	// with a line in a log that is not the image's to write to.
	for name := range hdr.PAXRecords {
		switch name {
		case "SCHILY.xattr.security.selinux", "SCHILY.xattr.system.nfs4_acl":
			delete(hdr.PAXRecords, name)
			delete(hdr.Xattrs, strings.TrimPrefix(name, "SCHILY.xattr.")) //nolint:staticcheck // SA1019: umoci reads the deprecated field.
		}
	}
	return nil
}

// makeParents makes the directories that lead to name but have no entry (yet)
// with mode 0755, whatever the umask of this process: umoci asks for 0777.
func makeParents(root, name string) error {
	// Links are followed as the container will see them, inside root; nothing else
	// writes here, so the result holds no link.
	parent, err := securejoin.SecureJoin(root, path.Dir(path.Clean("/"+name)))
	if err != nil {
		return err
	}
	if _, err := os.Lstat(parent); err == nil {
		return nil
	}
	dir := root
	for _, part := range strings.Split(strings.TrimPrefix(parent, root), "/") {
		dir = filepath.Join(dir, part)
		err := os.Mkdir(dir, 0o755)
		switch {
		case err == nil:
			if err := os.Chmod(dir, 0o755); err != nil {
				return err
			}
		case errors.Is(err, unix.ENOTDIR):
			return nil // a file or whiteout is in the way; umoci replaces it
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	return nil
}
