package layerpull

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// archive makes a tar stream of the layer.
func archive(t testing.TB, layer images.Layer) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := layer.Tar(tw); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// unpackTo unpacks one archive into a directory of its own.
func unpackTo(t *testing.T, data []byte) (string, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer")
	NewWithT(t).Expect(os.Mkdir(dir, 0o755)).To(Succeed())
	_, err := newUnpacker(dir, Limits{}).unpack(t.Context(), bytes.NewReader(data))
	return dir, err
}

// fds counts the open descriptors that lead below dir.
func fds(t *testing.T, dir string) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	n := 0
	for _, fd := range open {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err == nil && strings.HasPrefix(target, dir) {
			n++
		}
	}
	return n
}

func header(name string, kind byte) tar.Header { return tar.Header{Name: name, Typeflag: kind} }

func linkTo(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
}

// TestWhatReplacesWhat has one name twice, or a path through something else.
func TestWhatReplacesWhat(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	file := func(name string) tar.Header { return header(name, tar.TypeReg) }
	dir := func(name string) tar.Header { return header(name, tar.TypeDir) }
	for _, tc := range []struct {
		name    string
		headers []tar.Header
		files   []string // in the layer, in the end; with / behind directories, @ links, ! whiteouts, = opaque ones
	}{
		{"file over file", []tar.Header{file("a"), file("a")}, []string{"a"}},
		{"file over a tree", []tar.Header{dir("a"), dir("a/b"), file("a/b/c"), file("a")}, []string{"a"}},
		{"tree over a file", []tar.Header{file("a"), file("a/b/c")}, []string{"a/", "a/b/", "a/b/c"}},
		{"removed and made again", []tar.Header{file("a/b/c"), file("a"), file("a/b/d")}, []string{"a/", "a/b/", "a/b/d"}},
		{"directory over a link", []tar.Header{dir("x"), linkTo("a", "x"), dir("a"), file("a/f")}, []string{"a/", "a/f", "x/"}},
		{"through a link", []tar.Header{dir("usr/bin"), linkTo("bin", "usr/bin"), file("bin/sh")}, []string{"bin@", "usr/", "usr/bin/", "usr/bin/sh"}},
		{"through an absolute link", []tar.Header{linkTo("a", "/x/y"), file("a/f")}, []string{"a@", "x/", "x/y/", "x/y/f"}},
		{"through links with dots", []tar.Header{dir("d/e"), linkTo("d/e/up", "../../../.."), file("d/e/up/f")}, []string{"d/", "d/e/", "d/e/up@", "f"}},
		{"link changed in between", []tar.Header{dir("x"), dir("y"), linkTo("l", "x"), file("l/1"), linkTo("l", "y"), file("l/2")}, []string{"l@", "x/", "x/1", "y/", "y/2"}},
		{"hard link through a link", []tar.Header{file("x/f"), linkTo("l", "x"), {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/f"}}, []string{"h", "l@", "x/", "x/f"}},
		{"directory over a whiteout", []tar.Header{file(".wh.a"), dir("a"), file("a/f")}, []string{"a=", "a/f"}},
		{"whiteout after its directory", []tar.Header{dir("a"), file("a/f"), file(".wh.a")}, []string{"a=", "a/f"}},
		{"whiteout after its file", []tar.Header{file("a"), file(".wh.a")}, []string{"a"}},
		{"whiteout under an opaque one", []tar.Header{file("a/.wh..wh..opq"), file("a/.wh.b"), file("a/c/.wh.d")}, []string{"a=", "a/c/"}},
		{"whiteout before an opaque one", []tar.Header{file("a/.wh.b"), file("a/c/.wh.d"), file("a/f"), file("a/.wh..wh..opq")}, []string{"a=", "a/c/", "a/f"}},
		{"whiteout beside an opaque one", []tar.Header{file("b/.wh.x"), file("a/.wh..wh..opq"), file("b/.wh.y")}, []string{"a=", "b/", "b/x!", "b/y!"}},
		{"all is opaque", []tar.Header{file(".wh.x"), file(".wh..wh..opq"), file(".wh.y")}, []string{}},
		{"names that only look like dots", []tar.Header{file("..."), file("..a/b")}, []string{"...", "..a/", "..a/b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			root, err := unpackTo(t, archive(t, entries(tc.headers...)))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(kinds(t, root)).To(ConsistOf(tc.files))
			g.Expect(fds(t, root)).To(BeZero(), "directories left open")
		})
	}
}

// kinds lists a layer's files, each with the mark of its kind.
func kinds(t *testing.T, root string) []string {
	t.Helper()
	names := []string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		mark := ""
		switch {
		case d.Type()&os.ModeSymlink != 0:
			mark = "@"
		case d.Type()&os.ModeCharDevice != 0:
			mark = "!"
		case d.IsDir():
			mark = "/"
			var value [2]byte
			if n, err := unix.Lgetxattr(path, opaqueXattr, value[:]); err == nil && n == 1 {
				mark = "="
			}
		}
		names = append(names, strings.TrimPrefix(path, root+"/")+mark)
		return nil
	})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return names
}

// TestDirectoryTimes: what is made in a directory later must not change its time,
// however many directories are open in between.
func TestDirectoryTimes(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	var headers []tar.Header
	for range 2 {
		for n := range 3 * maxOpenDirs {
			dir := "d/" + strings.Repeat("x", n+1)
			headers = append(headers, header(dir, tar.TypeDir), header(dir+"/file", tar.TypeReg))
		}
	}
	headers = append(headers, header("d", tar.TypeDir), header("d/y/.wh.z", tar.TypeReg), header("d/x", tar.TypeReg),
		linkTo("l", "d/xx/new"), header("l/sub/file", tar.TypeReg))
	root, err := unpackTo(t, archive(t, entries(headers...)))
	g.Expect(err).NotTo(HaveOccurred())
	for n := range 3 * maxOpenDirs {
		if n > 0 {
			g.Expect(stat(t, root, "d", strings.Repeat("x", n+1)).Mtim.Sec).To(Equal(images.Epoch.Unix()), "%d", n)
		}
	}
	g.Expect(stat(t, root, "d").Mtim.Sec).To(Equal(images.Epoch.Unix()))
	g.Expect(stat(t, root, "d/xx/new").Mtim.Sec).To(BeNumerically(">", images.Epoch.Unix()), "it has no entry")
}

func TestSparseFiles(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	// What `tar --sparse` makes of 1 MiB of holes around "data", in both formats.
	for _, format := range []string{"gnu", "pax"} {
		data, err := os.ReadFile(filepath.Join("testdata", "sparse-"+format+".tar"))
		g.Expect(err).NotTo(HaveOccurred())
		root, err := unpackTo(t, data)
		g.Expect(err).NotTo(HaveOccurred(), format)
		content := read(t, root, "sparse")
		g.Expect(content).To(HaveLen(1<<20 + 4 + 1<<20))
		g.Expect(strings.Trim(content, "\x00")).To(Equal("data"))
		g.Expect(content[1<<20 : 1<<20+4]).To(Equal("data"))
		g.Expect(stat(t, root, "sparse").Blocks*512).To(BeNumerically("<", 64<<10), format)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	moment := time.Date(2031, 2, 3, 4, 5, 6, 123456789, time.UTC)
	root, err := unpackTo(t, archive(t, images.Layer{Tar: func(tw *tar.Writer) error {
		for _, h := range []tar.Header{
			{Name: "big", Typeflag: tar.TypeReg, Uid: 1<<32 - 2, Gid: 3_000_000_000, ModTime: moment, AccessTime: moment.Add(time.Hour), Format: tar.FormatPAX},
			{Name: "early", Typeflag: tar.TypeReg, ModTime: time.Unix(-5, 0), Format: tar.FormatPAX},
			{Name: "user", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "1\x00\n"}},
			{Name: "dir", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.user.old": "1"}},
			{Name: "dir", Typeflag: tar.TypeDir, Mode: 0o2750, PAXRecords: map[string]string{
				"SCHILY.xattr.user.new": "2", "SCHILY.xattr.trusted.overlay.redirect": "/etc",
			}},
			{Name: "dir/inherits", Typeflag: tar.TypeReg, Uid: 5, Gid: 6, Mode: 0o640},
			{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "nowhere", Uid: 7, Gid: 8, ModTime: moment, Format: tar.FormatPAX,
				PAXRecords: map[string]string{"SCHILY.xattr.trusted.x": "on the link"}},
			{Name: "gnu/" + strings.Repeat("n", 200), Typeflag: tar.TypeReg, Format: tar.FormatGNU, Uid: 3_000_000_000, Gid: 1<<32 - 2},
			{Name: "gnu/link", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("l", 300), Format: tar.FormatGNU},
			{Name: "pax/" + strings.Repeat("long/", 100) + "\u00fc", Typeflag: tar.TypeReg, Format: tar.FormatPAX},
		} {
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
		}
		return nil
	}}))
	g.Expect(err).NotTo(HaveOccurred())
	big := stat(t, root, "big")
	g.Expect([]uint32{big.Uid, big.Gid}).To(Equal([]uint32{1<<32 - 2, 3_000_000_000}))
	g.Expect(big.Mtim).To(Equal(unix.NsecToTimespec(moment.UnixNano())))
	g.Expect(big.Atim.Sec).To(Equal(moment.Unix() + 3600))
	g.Expect(stat(t, root, "early").Mtim.Sec).To(BeEquivalentTo(-5))
	g.Expect(xattr(t, filepath.Join(root, "user"), "user.a")).To(Equal("1\x00\n"))
	g.Expect(xattr(t, filepath.Join(root, "dir"), "user.new")).To(Equal("2"))
	_, err = unix.Lgetxattr(filepath.Join(root, "dir"), "user.old", nil)
	g.Expect(err).To(MatchError(unix.ENODATA))
	_, err = unix.Lgetxattr(filepath.Join(root, "dir"), "trusted.overlay.redirect", nil)
	g.Expect(err).To(MatchError(unix.ENODATA), "it would redirect overlayfs")
	g.Expect(xattr(t, filepath.Join(root, "dir"), "trusted.overlay.overlay.redirect")).To(Equal("/etc"))
	inherits := stat(t, root, "dir/inherits")
	g.Expect([]uint32{inherits.Uid, inherits.Gid}).To(Equal([]uint32{5, 6}))
	link := stat(t, root, "link")
	g.Expect([]uint32{link.Uid, link.Gid}).To(Equal([]uint32{7, 8}))
	g.Expect(link.Mtim.Sec).To(Equal(moment.Unix()))
	g.Expect(xattr(t, filepath.Join(root, "link"), "trusted.x")).To(Equal("on the link"))
	gnu := stat(t, root, "gnu", strings.Repeat("n", 200))
	g.Expect(gnu.Mode & unix.S_IFMT).To(BeEquivalentTo(unix.S_IFREG))
	g.Expect([]uint32{gnu.Uid, gnu.Gid}).To(Equal([]uint32{3_000_000_000, 1<<32 - 2}), "in base 256")
	g.Expect(os.Readlink(filepath.Join(root, "gnu/link"))).To(Equal(strings.Repeat("l", 300)))
	g.Expect(stat(t, root, "pax", strings.Repeat("long/", 100), "\u00fc").Mode & unix.S_IFMT).To(BeEquivalentTo(unix.S_IFREG))
}

func TestRefusedEntries(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	deep := strings.TrimSuffix(strings.Repeat("d/", maxDepth+1), "/")
	loop := []tar.Header{linkTo("a", "b"), linkTo("b", "a"), header("a/f", tar.TypeReg)}
	winding := []tar.Header{header("x", tar.TypeDir)}
	for n := range 30 {
		winding = append(winding, linkTo("l"+strings.Repeat("x", n), strings.Repeat("x/../", 200)+"l"+strings.Repeat("x", n+1)))
	}
	winding = append(winding, header("l/f", tar.TypeReg))
	attributes := map[string]string{}
	for n := range maxXattrs + 1 {
		attributes[fmt.Sprintf("SCHILY.xattr.user.%x", n)] = "1" // short, for file systems with little room for them
	}
	for _, tc := range []struct {
		name    string
		headers []tar.Header
		kind    errdefs.Kind
	}{
		{"deep", []tar.Header{header(deep, tar.TypeReg)}, errdefs.TooLarge},
		{"deep through links", []tar.Header{header(deep[:299], tar.TypeDir), linkTo("l", deep[:299]), header("l/"+deep[:299], tar.TypeReg)}, errdefs.TooLarge},
		{"links in a loop", loop, errdefs.NotAnImage},
		{"links that wind", winding, errdefs.TooLarge},
		{"name too long", []tar.Header{header(strings.Repeat("n", 256), tar.TypeReg)}, errdefs.NotAnImage},
		{"owner nobody can be", []tar.Header{{Name: "a", Typeflag: tar.TypeReg, Uid: 1<<32 - 1}}, errdefs.NotAnImage},
		{"owner beyond all", []tar.Header{{Name: "a", Typeflag: tar.TypeReg, Gid: 1 << 33}}, errdefs.NotAnImage},
		{"device that wraps", []tar.Header{{Name: "a", Typeflag: tar.TypeChar, Devmajor: 1 << 12, Devminor: 3}}, errdefs.NotAnImage},
		{"block device that wraps", []tar.Header{{Name: "a", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 1 << 20}}, errdefs.NotAnImage},
		{"hard link to a directory", []tar.Header{header("d", tar.TypeDir), {Name: "h", Typeflag: tar.TypeLink, Linkname: "d"}}, errdefs.NotAnImage},
		{"hard link to itself", []tar.Header{header("f", tar.TypeReg), {Name: "f", Typeflag: tar.TypeLink, Linkname: "f"}}, errdefs.NotAnImage},
		{"hard link to the root", []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "/"}}, errdefs.NotAnImage},
		{"hard link through a file", []tar.Header{header("f", tar.TypeReg), {Name: "h", Typeflag: tar.TypeLink, Linkname: "f/g"}}, errdefs.NotAnImage},
		{"unknown type", []tar.Header{header("a", 'Z')}, errdefs.NotAnImage},
		{"name of many parts", []tar.Header{header(strings.Repeat(strings.Repeat("n", 200)+"/", 21)+"n", tar.TypeReg)}, errdefs.TooLarge},
		{"long link", []tar.Header{linkTo("l", strings.Repeat("./", maxNameBytes/2)+"x")}, errdefs.TooLarge},
		{"long hard link", []tar.Header{header("f", tar.TypeReg), {Name: "h", Typeflag: tar.TypeLink, Linkname: strings.Repeat("./", maxNameBytes/2) + "f"}}, errdefs.TooLarge},
		{"many attributes", []tar.Header{{Name: "a", Typeflag: tar.TypeReg, PAXRecords: attributes}}, errdefs.TooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			root, err := unpackTo(t, archive(t, entries(tc.headers...)))
			g.Expect(err).To(HaveOccurred())
			g.Expect(err).NotTo(MatchError(unix.ENOSPC), "that is the file system's word, not ours")
			g.Expect(errdefs.KindOf(contentError(err))).To(Equal(tc.kind), "%v", err)
			g.Expect(fds(t, root)).To(BeZero(), "directories left open")
		})
	}
}

// TestSparseBomb: what a sparse file claims to be counts, not what it takes to say so.
func TestSparseBomb(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	for _, format := range []string{"gnu", "pax"} { // 2 MiB each, of holes
		g := NewWithT(t)
		data, err := os.ReadFile(filepath.Join("testdata", "sparse-"+format+".tar"))
		g.Expect(err).NotTo(HaveOccurred())
		_, err = newUnpacker(t.TempDir(), Limits{LayerBytes: 1 << 20}).unpack(t.Context(), bytes.NewReader(data))
		g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue(), "%s: %v", format, err)
	}
}

// TestWalkStaysInside resolves paths without openat2, as before Linux 5.6.
func TestWalkStaysInside(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	outside := t.TempDir()
	inside := filepath.Join(outside, "layer")
	g.Expect(os.MkdirAll(filepath.Join(inside, "a/b"), 0o755)).To(Succeed())
	for name, target := range map[string]string{"up": "../..", "abs": "/", "out": outside, "chain": "abs/../up"} {
		g.Expect(os.Symlink(target, filepath.Join(inside, name))).To(Succeed())
	}
	tree, err := openTree(inside)
	g.Expect(err).NotTo(HaveOccurred())
	for name, want := range map[string]string{
		"a/b": "a/b", "a/../a": "a", "../../a": "a", "up": "", "abs/a": "a", "chain/a/b": "a/b", "up/../abs/up/a/./b": "a/b",
	} {
		w := walk{levels: []level{{fd: tree.open[""].fd}}}
		g.Expect(w.run(name)).To(Succeed(), name)
		g.Expect(w.path()).To(Equal(want), name)
		w.close()
	}
	_, err = tree.dir("out", false)
	g.Expect(err).To(MatchError(unix.ENOENT))
	g.Expect(tree.close()).To(Succeed())
	g.Expect(list(t, outside)).To(ConsistOf("layer"))
}

func TestReadAhead(t *testing.T) {
	t.Parallel()
	pool := &buffers{}
	for _, size := range []int{0, 1, bufferBytes - 1, bufferBytes, 3*ringBuffers*bufferBytes + 7} {
		g := NewWithT(t)
		want := bytes.Repeat([]byte("abcdefg"), size/7+1)[:size]
		a := readAhead(bytes.NewReader(want), pool)
		got, err := io.ReadAll(a)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(bytes.Equal(got, want)).To(BeTrue(), "%d bytes", size)
		a.close()
		_, err = a.Read(make([]byte, 1))
		g.Expect(err).To(MatchError(io.ErrClosedPipe))
	}
	g := NewWithT(t)
	// Closed in the middle: src is then where reading stopped, and free to use.
	src := &countingReader{}
	a := readAhead(src, pool)
	_, err := io.ReadFull(a, make([]byte, bufferBytes+1))
	g.Expect(err).NotTo(HaveOccurred())
	a.close()
	at := src.n
	g.Expect(at).To(BeNumerically("<=", (ringBuffers+2)*bufferBytes), "the ring is bounded")
	_, _ = src.Read(make([]byte, 1))
	g.Expect(src.n).To(Equal(at + 1))
}

type countingReader struct{ n int }

func (c *countingReader) Read(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

// TestInheritedACL: a directory's default ACL is not for the entries made in it,
// which say themselves who may read them.
func TestInheritedACL(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	// struct posix_acl_xattr: user::rwx, user:1234:rwx, group::---, mask::rwx, other::---.
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xd2\x04\x00\x00" +
		"\x04\x00\x00\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	root, err := unpackTo(t, archive(t, entries(
		tar.Header{Name: "d", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_default": acl}},
		tar.Header{Name: "d/file", Typeflag: tar.TypeReg, Mode: 0o600},
		tar.Header{Name: "d/sub", Typeflag: tar.TypeDir, Mode: 0o700},
	)))
	g.Expect(err).NotTo(HaveOccurred())
	if _, err := unix.Lgetxattr(filepath.Join(root, "d"), "system.posix_acl_default", nil); err != nil {
		t.Skipf("no ACLs here: %v", err)
	}
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		for _, path := range []string{"d/file", "d/sub"} {
			_, err := unix.Lgetxattr(filepath.Join(root, path), name, nil)
			g.Expect(err).To(MatchError(unix.ENODATA), "%s of %s", name, path)
		}
	}
	g.Expect(stat(t, root, "d/file").Mode & 0o7777).To(BeEquivalentTo(0o600))
}
