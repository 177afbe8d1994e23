package layerpull

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// pullLayers pulls an image of these layers.
func pullLayers(t *testing.T, layers ...images.Layer) Image {
	t.Helper()
	reg := newRegistry(t)
	ref, _ := reg.push(t, images.Spec{Layers: layers})
	img, err := Pull(t.Context(), ref, newStore(t), reg.config(t))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return img
}

func stat(t *testing.T, parts ...string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	NewWithT(t).Expect(unix.Lstat(filepath.Join(parts...), &st)).To(Succeed())
	return st
}

func xattr(t *testing.T, path, name string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, buf)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return string(buf[:n])
}

func TestUnpackKeepsWhatTheArchiveSays(t *testing.T) {
	needsRoot(t) // and no t.Parallel: the umask is the process's
	old := unix.Umask(0)
	defer unix.Umask(old)
	g := NewWithT(t)
	// struct vfs_cap_data, revision 2: cap_net_bind_service, permitted and effective.
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	img := pullLayers(t, entries(
		tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "git"}},
		tar.Header{Name: "suid", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1234, Gid: 5_000_000},
		tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		tar.Header{Name: "implied/parent/file", Typeflag: tar.TypeReg, Mode: 0o600},
		tar.Header{Name: "capable", Typeflag: tar.TypeReg, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability,
			"SCHILY.xattr.security.selinux":    "system_u:object_r:shadow_t:s0",
		}},
		tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "suid"},
		tar.Header{Name: "soft", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		tar.Header{Name: "fifo", Typeflag: tar.TypeFifo},
		tar.Header{Name: strings.Repeat("long/", 60) + "name", Typeflag: tar.TypeReg},
	))
	dir := img.LayerDirs[0]
	g.Expect(stat(t, dir).Mode & 0o7777).To(BeEquivalentTo(0o755))
	suid := stat(t, dir, "suid")
	g.Expect(suid.Mode & 0o7777).To(BeEquivalentTo(0o4755))
	g.Expect([]uint32{suid.Uid, suid.Gid}).To(Equal([]uint32{1234, 5_000_000}))
	g.Expect(suid.Mtim.Sec).To(Equal(images.Epoch.Unix()))
	g.Expect(stat(t, dir, "hard").Ino).To(Equal(suid.Ino))
	g.Expect(stat(t, dir, "tmp").Mode & 0o7777).To(BeEquivalentTo(0o1777))
	g.Expect(stat(t, dir, "implied").Mode & 0o7777).To(BeEquivalentTo(0o755))
	g.Expect(stat(t, dir, "implied/parent").Mode & 0o7777).To(BeEquivalentTo(0o755))
	g.Expect(xattr(t, filepath.Join(dir, "capable"), "security.capability")).To(Equal(capability))
	_, err := unix.Lgetxattr(filepath.Join(dir, "capable"), "security.selinux", nil)
	g.Expect(err).To(Or(MatchError(unix.ENODATA), MatchError(unix.ENOTSUP)), "labels are the node's business")
	g.Expect(os.Readlink(filepath.Join(dir, "soft"))).To(Equal("/etc/passwd"))
	g.Expect(stat(t, dir, "null").Rdev).To(Equal(unix.Mkdev(1, 3)))
	g.Expect(stat(t, dir, "fifo").Mode & unix.S_IFMT).To(BeEquivalentTo(unix.S_IFIFO))
	g.Expect(read(t, dir, strings.Repeat("long/", 60), "name")).To(Equal(marker))
	g.Expect(list(t, dir)).To(ConsistOf("suid", "tmp", "implied", "capable", "hard", "soft", "null", "fifo", "long"))
}

func TestRootOfTheImage(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	root := func(mode int64) images.Layer {
		return entries(tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: mode, Uid: 7, Gid: 8})
	}
	for name, tc := range map[string]struct {
		layers []images.Layer
		want   int // the place among LayerDirs
	}{
		"none says":      {[]images.Layer{oneFile("/a"), oneFile("/b")}, -1},
		"the lowest":     {[]images.Layer{root(0o555), oneFile("/a"), oneFile("/b")}, 0},
		"the uppermost":  {[]images.Layer{root(0o755), root(0o555), oneFile("/a")}, 1},
		"no layer":       {nil, -1},
		"the same twice": {[]images.Layer{root(0o555), oneFile("/a"), root(0o555)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := newRegistry(t)
			ref, _ := r.push(t, images.Spec{Layers: tc.layers})
			store := newStore(t)
			for _, from := range []string{"the registry", "the store"} {
				img, err := Pull(t.Context(), ref, store, r.config(t))
				g.Expect(err).NotTo(HaveOccurred())
				if tc.want < 0 {
					g.Expect(img.RootDir).To(BeEmpty(), from)
					continue
				}
				g.Expect(img.RootDir).To(Equal(img.LayerDirs[tc.want]), from)
				st := stat(t, img.RootDir)
				g.Expect(st.Mode & 0o7777).To(BeEquivalentTo(0o555))
				g.Expect([]uint32{st.Uid, st.Gid}).To(Equal([]uint32{7, 8}))
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	img := pullLayers(t,
		entries(reg("gone"), reg("dir/old"), reg("swap/old"), reg("kept")),
		entries(reg(".wh.gone"), reg("dir/.wh..wh..opq"), reg("dir/new"), reg(".wh.swap"), reg("swap/new")),
	)
	upper := img.LayerDirs[1]
	g.Expect(stat(t, upper, "gone").Mode & unix.S_IFMT).To(BeEquivalentTo(unix.S_IFCHR))
	g.Expect(stat(t, upper, "gone").Rdev).To(BeZero())
	g.Expect(xattr(t, filepath.Join(upper, "dir"), "trusted.overlay.opaque")).To(Equal("y"))
	g.Expect(xattr(t, filepath.Join(upper, "swap"), "trusted.overlay.opaque")).To(Equal("y"))
	g.Expect(list(t, upper)).To(ConsistOf("gone", "dir", "swap"))

	// What the kernel makes of it.
	merged := t.TempDir()
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+upper+":"+img.LayerDirs[0]); err != nil {
		t.Skipf("overlay cannot be mounted here: %v", err)
	}
	defer func() { g.Expect(unix.Unmount(merged, 0)).To(Succeed()) }()
	g.Expect(list(t, merged)).To(ConsistOf("dir", "swap", "kept"))
	g.Expect(list(t, filepath.Join(merged, "dir"))).To(ConsistOf("new"))
	g.Expect(list(t, filepath.Join(merged, "swap"))).To(ConsistOf("new"))
}

// TestHostileArchives unpacks archives that try to reach out of their layer. A
// canary beside the layer directory, and another with an absolute path, must
// stay as they are; whether the archive is refused or confined is secondary.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	up := strings.Repeat("../", 12)
	reg := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
	}
	for _, tc := range []struct {
		name    string
		headers []tar.Header
		refused bool
	}{
		{"dots in the name", []tar.Header{reg(up + canary)}, true},
		{"dots in the middle", []tar.Header{reg("a/../../" + up + canary)}, true},
		{"absolute name", []tar.Header{reg(canary)}, false},
		{"absolute symlink, then through it", []tar.Header{link("l", outside), reg("l/canary")}, false},
		{"relative symlink, then through it", []tar.Header{link("l", up+outside), reg("l/canary")}, false},
		{"symlink chain", []tar.Header{link("a", "/"), link("b", "a/.."), reg("b" + canary)}, false},
		{"over a symlink", []tar.Header{link("l", canary), reg("l")}, false},
		{"whiteout through a symlink", []tar.Header{link("l", outside), reg("l/.wh.canary")}, false},
		{"opaque through a symlink", []tar.Header{link("l", outside), reg("l/.wh..wh..opq")}, false},
		{"whiteout of the parent", []tar.Header{reg(".wh...")}, true},
		{"whiteout of the parent, deeper", []tar.Header{reg("a/.wh...")}, true},
		{"whiteout of itself", []tar.Header{reg(".wh..")}, true},
		{"whiteout of nothing", []tar.Header{reg(".wh.")}, true},
		{"hard link to an absolute path", []tar.Header{hard("h", canary), reg("h")}, true},
		{"hard link with dots", []tar.Header{hard("h", up+canary)}, true},
		{"hard link through a symlink", []tar.Header{link("l", outside), hard("h", "l/canary")}, true},
		{"root as a symlink", []tar.Header{link("./", outside), reg("canary")}, true},
		{"directory over the canary", []tar.Header{link("l", outside), {Name: "l/canary/", Typeflag: tar.TypeDir}}, false},
		{"device through a symlink", []tar.Header{link("l", outside), {Name: "l/canary", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, false},
		{"long path", []tar.Header{reg(strings.Repeat("a/", maxNameBytes) + "a")}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := NewWithT(t)
			writeFile(t, canary, "untouched")
			r := newRegistry(t)
			ref, _ := r.push(t, images.Spec{Layers: []images.Layer{entries(tc.headers...)}})
			parent := t.TempDir()
			writeFile(t, filepath.Join(parent, "canary"), "untouched")
			store, err := OpenStore(filepath.Join(parent, "store"))
			g.Expect(err).NotTo(HaveOccurred())
			writeFile(t, store.path("tmp", "canary"), "untouched")

			_, err = Pull(t.Context(), ref, store, r.config(t))
			if tc.refused {
				g.Expect(errdefs.KindOf(err)).To(Or(Equal(errdefs.NotAnImage), Equal(errdefs.TooLarge)), "%v", err)
			} else {
				g.Expect(err).NotTo(HaveOccurred())
			}
			for _, path := range []string{canary, filepath.Join(parent, "canary"), store.path("tmp", "canary")} {
				g.Expect(read(t, path)).To(Equal("untouched"), path)
				g.Expect(stat(t, path).Nlink).To(BeEquivalentTo(1))
			}
			g.Expect(list(t, outside)).To(ConsistOf("canary"))
			g.Expect(list(t, parent)).To(ConsistOf("canary", "store"))
		})
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	bomb := zeroFile(64 << 20)
	empty := images.Layer{}
	many := make([]tar.Header, 50)
	for i := range many {
		many[i] = tar.Header{Name: strings.Repeat("x", i+1), Typeflag: tar.TypeReg}
	}
	for _, tc := range []struct {
		name   string
		layers []images.Layer
		limits Limits
		ok     bool
	}{
		{"bomb", []images.Layer{bomb}, Limits{LayerBytes: 8 << 20}, false},
		{"bomb over the store's limit", []images.Layer{bomb}, Limits{StoreBytes: 8 << 20}, false},
		{"sum over the store's limit", []images.Layer{{Random: 3 << 20}, {Random: 3 << 20}}, Limits{StoreBytes: 4 << 20}, false},
		{"entries", []images.Layer{entries(many...)}, Limits{LayerEntries: 49}, false},
		{"just enough", []images.Layer{entries(many...), empty}, Limits{LayerEntries: 50, LayerBytes: 1 << 20, StoreBytes: 1 << 20}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			reg, store := newRegistry(t), newStore(t)
			ref, _ := reg.push(t, images.Spec{Layers: tc.layers})
			cfg := reg.config(t)
			cfg.Limits = tc.limits
			_, err := Pull(t.Context(), ref, store, cfg)
			if tc.ok {
				g.Expect(err).NotTo(HaveOccurred())
				return
			}
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
			g.Expect(list(t, store.path("tmp", ""))).To(BeEmpty())
			g.Expect(list(t, store.path("images", ""))).To(BeEmpty())
		})
	}
}

// zeroFile is a layer with one file that compresses to almost nothing.
func zeroFile(size int64) images.Layer {
	return images.Layer{Tar: func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: size, Mode: 0o644}); err != nil {
			return err
		}
		_, err := io.CopyN(tw, zeros{}, size)
		return err
	}}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestFullStore(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	defer func() { g.Expect(unix.Unmount(dir, 0)).To(Succeed()) }()
	reg := newRegistry(t)
	ref, _ := reg.push(t, images.Spec{Layers: []images.Layer{zeroFile(4 << 20)}})
	store, err := OpenStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	_, err = Pull(t.Context(), ref, store, reg.config(t))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("the layer store is full")))
	expectEmpty(t, store)
}
