package ocisource

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// maxEntries bounds the entries of an archive, and maxHeaderBytes what is read of
	// it to find them: an archive has one blob per layer, not millions of empty ones.
	maxEntries     = 20_000
	maxHeaderBytes = 64 << 20
)

// fileError gives an error of the file system its kind.
func fileError(op string, err error, otherwise errdefs.Kind) error {
	kind := otherwise
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = errdefs.NotFound
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return errdefs.Newf(errdefs.NotAnImage, op, "a link leads out: %w", err)
	case errors.Is(err, unix.ENOTDIR):
		kind = errdefs.NotAnImage
	}
	return errdefs.New(kind, op, err)
}

// plain opens the plain file with this name at a directory, for reading. Nothing else
// is opened at all: a FIFO would block, and a device may act.
func plain(at int, name string, resolve uint64) (*os.File, int64, error) {
	op := "open " + name
	found, err := unix.Openat2(at, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, 0, fileError(op, err, errdefs.Internal)
	}
	defer func() { _ = unix.Close(found) }() // it was not even opened for reading
	var stat unix.Stat_t
	if err := unix.Fstat(found, &stat); err != nil {
		return nil, 0, errdefs.New(errdefs.Internal, op, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, 0, errdefs.Newf(errdefs.NotAnImage, op, "it is no plain file")
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", found))
	if err != nil {
		return nil, 0, errdefs.New(errdefs.Internal, op, err)
	}
	return f, stat.Size, nil
}

// dir is a layout in a directory.
type dir struct{ fd int }

// openDir opens the directory at a path without links: it is the one that the signature
// policy is asked about.
func openDir(path string) (files, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, fileError("open "+path, err, errdefs.Internal)
	}
	return dir{fd}, nil
}

func (d dir) Close() error { return unix.Close(d.fd) }

func (d dir) open(name string) (io.ReadCloser, int64, error) {
	f, size, err := plain(d.fd, name, unix.RESOLVE_BENEATH)
	if err != nil {
		return nil, 0, err
	}
	return body{f, f, name}, size, nil
}

// body is a file being read; its errors have a kind.
type body struct {
	io.Reader
	io.Closer
	name string
}

// Read implements [io.Reader].
func (b body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = errdefs.New(errdefs.Internal, "read "+b.name, err)
	}
	return n, err
}

// archive is a layout in a tar file, whose blobs are read in their places.
type archive struct {
	file *os.File
	at   map[string]span
}

// span is where a file's content is in the archive.
type span struct{ offset, size int64 }

func openArchive(path string) (files, error) {
	f, size, err := plain(unix.AT_FDCWD, path, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, err
	}
	a := &archive{file: f, at: map[string]span{}}
	if err := a.scan(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return a, nil
}

// isFile are the files of a layout. Names that are not canonical are others: what some
// tool would take them for does not matter here.
var isFile = regexp.MustCompile(`^(?:index\.json|blobs/sha256/[0-9a-f]{64})$`)

// scan finds the files.
func (a *archive) scan(size int64) error {
	const op = "read archive"
	if err := a.refuseCompressed(); err != nil {
		return err
	}
	r := tar.NewReader(&headers{a.file, maxHeaderBytes})
	for n := 0; ; n++ {
		hdr, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errdefs.Is(err, errdefs.TooLarge):
			return err
		case err != nil:
			return errdefs.New(errdefs.NotAnImage, op, err)
		case n == maxEntries:
			return errdefs.Newf(errdefs.TooLarge, op, "it has more than %d entries", maxEntries)
		}
		name := strings.TrimPrefix(hdr.Name, "./")
		if !isFile.MatchString(name) {
			continue
		}
		// archive/tar reads no further than the header.
		offset, err := a.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return errdefs.New(errdefs.Internal, op, err)
		}
		_, twice := a.at[name]
		switch {
		case hdr.Typeflag != tar.TypeReg || sparse(hdr):
			return errdefs.Newf(errdefs.NotAnImage, op, "%s is no plain file", name)
		case twice:
			return errdefs.Newf(errdefs.NotAnImage, op, "it has two files %s", name)
		case hdr.Size > size-offset:
			return errdefs.Newf(errdefs.NotAnImage, op, "it ends within %s", name)
		}
		a.at[name] = span{offset, hdr.Size}
	}
}

// sparse reports whether the entry's content is not in the archive as it is.
func sparse(hdr *tar.Header) bool {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// refuseCompressed refuses an archive whose blobs cannot be read in their places.
// containers/image would unpack all of it to disk.
func (a *archive) refuseCompressed() error {
	const op = "read archive"
	head := make([]byte, 6)
	n, err := a.file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return errdefs.New(errdefs.Internal, op, err)
	}
	for _, magic := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd", "\xfd7zXZ\x00", "BZh"} { // gzip, zstd, xz, bzip2
		if bytes.HasPrefix(head[:n], []byte(magic)) {
			return errdefs.Newf(errdefs.Unsupported, op, "it is compressed as a whole, and its blobs already are: decompress it first")
		}
	}
	return nil
}

func (a *archive) Close() error { return a.file.Close() }

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	s, ok := a.at[name]
	if !ok {
		return nil, 0, errdefs.New(errdefs.NotFound, "open "+name+" in the archive", fs.ErrNotExist)
	}
	return body{io.NewSectionReader(a.file, s.offset, s.size), io.NopCloser(nil), name}, s.size, nil
}

// headers is an archive of which a bounded number of bytes is read; archive/tar
// passes over the content of files by seeking.
type headers struct {
	file *os.File
	left int64
}

// Read implements [io.Reader].
func (h *headers) Read(p []byte) (int, error) {
	n, err := h.file.Read(p)
	if h.left -= int64(n); h.left < 0 {
		return 0, errdefs.Newf(errdefs.TooLarge, "read archive", "its headers have more than %d bytes", maxHeaderBytes)
	}
	return n, err
}

// Seek implements [io.Seeker].
func (h *headers) Seek(offset int64, whence int) (int64, error) { return h.file.Seek(offset, whence) }
