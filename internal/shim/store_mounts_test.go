package shim

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/pkg/errdefs"
)

var userns = bundlegen.Mapping{
	UIDs: []rspec.LinuxIDMapping{{HostID: 300000, Size: 65536}},
	GIDs: []rspec.LinuxIDMapping{{HostID: 400000, Size: 65536}},
}

// as runs a program of the host's as root of the user namespace and says whether it succeeded.
func as(t *testing.T, m bundlegen.Mapping, name string, args ...string) bool {
	t.Helper()
	ids := func(ranges []rspec.LinuxIDMapping) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: int(ranges[0].ContainerID), HostID: int(ranges[0].HostID), Size: int(ranges[0].Size)}}
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids(m.UIDs), GidMappings: ids(m.GIDs), GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
	return cmd.Run() == nil
}

func owner(t *testing.T, path string) [2]uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return [2]uint32{st.Uid, st.Gid}
}

func TestStoreOfAUserNamespace(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	g := NewWithT(t)
	if !inside {
		g.Expect(os.ReadDir(mustPod(t, filepath.Join(dir, "state"), "p1").Rootfs())).To(BeEmpty(), "the host sees an empty directory")
		return
	}
	st := testStore(t, dir)
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	low := layer(t, st, "low", map[string]string{"etc/f": "low", "gone": "x", "opaque/x": "x"})
	high := layer(t, st, "high", map[string]string{"user": "u", "opaque/y": "y", "stranger": "s"})
	g.Expect(os.Chown(filepath.Join(high, "user"), 1000, 1001)).To(Succeed())
	g.Expect(os.Chown(filepath.Join(high, "stranger"), 70000, 70000)).To(Succeed())
	g.Expect(unix.Mknod(filepath.Join(high, "gone"), unix.S_IFCHR, 0)).To(Succeed())
	g.Expect(unix.Setxattr(filepath.Join(high, "opaque"), "trusted.overlay.opaque", []byte("y"), 0)).To(Succeed())
	const revision2, revision3, effective = 0x02000000, 0x03000000, 1
	// CAP_NET_RAW, permitted and effective, as vfs_cap_data of revision 2 has it (capabilities(7)).
	capability := binary.LittleEndian.AppendUint32(nil, revision2|effective)
	capability = binary.LittleEndian.AppendUint32(capability, 1<<unix.CAP_NET_RAW)
	capability = append(capability, make([]byte, 12)...)
	g.Expect(unix.Setxattr(filepath.Join(low, "etc", "f"), "security.capability", capability, 0)).To(Succeed())
	image := layers.Image{LayerDirs: []string{low, high}, RootDir: low}

	rootfs, err := st.mount("c1", image, view{ids: userns})
	if errdefs.Is(err, errdefs.Unsupported) {
		t.Skipf("no idmapped layers on this kernel: %v", err)
	}
	g.Expect(err).NotTo(HaveOccurred())
	for path, want := range map[string][2]uint32{
		"": {300000, 400000}, "etc/f": {300000, 400000}, "user": {301000, 401001}, "stranger": {65534, 65534},
	} {
		g.Expect(owner(t, filepath.Join(rootfs, path))).To(Equal(want), path)
	}
	// The capability is one in the namespace, of revision 3, whose end says whose root's it is.
	got := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(rootfs, "etc", "f"), "security.capability", got)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(binary.LittleEndian.Uint32(got)).To(Equal(uint32(revision3 | effective)))
	g.Expect(binary.LittleEndian.Uint32(got[n-4 : n])).To(Equal(uint32(300000)))
	g.Expect(filepath.Join(rootfs, "gone")).NotTo(BeAnExistingFile(), "whiteouts hold")
	g.Expect(filepath.Join(rootfs, "opaque", "x")).NotTo(BeAnExistingFile())

	// Root of the namespace reaches and owns it, and what it writes is its own.
	file := filepath.Join(rootfs, "etc", "f")
	g.Expect(as(t, userns, "/bin/sh", "-c", "echo new >>"+file+" && chown 5:6 "+file+" && mkdir "+rootfs+"/made")).To(BeTrue())
	g.Expect(owner(t, file)).To(Equal([2]uint32{300005, 400006}))
	g.Expect(owner(t, filepath.Join(rootfs, "made"))).To(Equal([2]uint32{300000, 400000}))
	g.Expect(as(t, userns, "/bin/sh", "-c", "echo new >>"+rootfs+"/stranger")).To(BeFalse())
	g.Expect(os.ReadFile(filepath.Join(low, "etc", "f"))).To(Equal([]byte("low")), "the layers stay as they are")
	g.Expect(owner(t, filepath.Join(low, "etc", "f"))).To(Equal([2]uint32{0, 0}))

	// Another range of the host's users is another container, on the same layers; to it, and
	// to the namespace itself, the store is closed.
	other := bundlegen.Mapping{UIDs: []rspec.LinuxIDMapping{{HostID: 500000, Size: 65536}}, GIDs: []rspec.LinuxIDMapping{{HostID: 500000, Size: 65536}}}
	second, err := st.mount("c2", image, view{ids: other})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(owner(t, filepath.Join(second, "etc", "f"))).To(Equal([2]uint32{500000, 500000}))
	g.Expect(as(t, other, "/bin/sh", "-c", "echo new >>"+file)).To(BeFalse())
	g.Expect(as(t, other, "/bin/ls", st.images())).To(BeFalse())
	g.Expect(as(t, userns, "/bin/ls", st.dir)).To(BeFalse())
	g.Expect(as(t, userns, "/bin/ls", st.pod.Rootfs())).To(BeFalse(), "it passes and sees nothing")

	plain, err := st.mount("c3", image, view{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(owner(t, filepath.Join(plain, "etc", "f"))).To(Equal([2]uint32{0, 0}))

	for _, id := range []string{"c1", "c2", "c3"} {
		g.Expect(st.remove(id)).To(Succeed())
	}
	g.Expect(os.ReadDir(st.pod.Rootfs())).To(BeEmpty())
	g.Expect(os.ReadDir(filepath.Join(st.dir, containersDir))).To(BeEmpty())
	g.Expect(filepath.Join(low, "etc", "f")).To(BeARegularFile())
	g.Expect(st.close()).To(Succeed())
	g.Expect(st.pod.Remove()).To(Succeed())
}

// A root that the namespace has no user for could be entered by nobody.
func TestStoreOfATooSmallUserNamespace(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	st := testStore(t, dir)
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	l := layer(t, st, "l", map[string]string{"f": ""})
	g.Expect(os.Chown(l, 70000, 0)).To(Succeed())
	_, err := st.mount("c1", layers.Image{LayerDirs: []string{l}, RootDir: l}, view{ids: userns})
	g.Expect(err).To(MatchError(ContainSubstring("user 70000")))
	g.Expect(st.remove("c1")).To(Succeed())
	outside := filepath.Join(dir, "outside")
	g.Expect(os.Mkdir(outside, 0o700)).To(Succeed())
	_, err = st.mount("c2", layers.Image{LayerDirs: []string{outside}}, view{ids: userns})
	g.Expect(err).To(MatchError(ContainSubstring("not in the store")))
}

// hostileImage is an image whose paths lead to a canary of the host's.
func hostileImage(t *testing.T, st *store, outside string) layers.Image {
	t.Helper()
	g := NewWithT(t)
	low := layer(t, st, "low", map[string]string{"data/f": "low", "data/deep/g": "deep", "hidden": "x"})
	high := layer(t, st, "high", map[string]string{"data/f": "high", "canary": "the image's own"})
	for name, target := range map[string]string{
		"absolute": outside, "relative": "../../../../../../../../../../.." + outside, "proc": "/proc/self/root" + outside,
		"data/up": "../../../../../..", "inner": "/data/deep", "loop": "loop", "file": outside + "/canary", "root": "/",
	} {
		g.Expect(os.Symlink(target, filepath.Join(high, name))).To(Succeed())
	}
	g.Expect(unix.Mkfifo(filepath.Join(high, "fifo"), 0o600)).To(Succeed())
	g.Expect(unix.Mknod(filepath.Join(high, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))).To(Succeed())
	g.Expect(os.Chmod(low, 0o751)).To(Succeed())
	return layers.Image{LayerDirs: []string{low, high}, RootDir: low}
}

func TestMountImage(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	g := NewWithT(t)
	outside := filepath.Join(dir, "outside")
	canary := filepath.Join(outside, "canary")
	if !inside {
		g.Expect(os.ReadFile(canary)).To(Equal([]byte("the host's")))
		return
	}
	g.Expect(os.Mkdir(outside, 0o700)).To(Succeed())
	g.Expect(os.WriteFile(canary, []byte("the host's"), 0o600)).To(Succeed())
	st := testStore(t, dir)
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	image := hostileImage(t, st, outside)
	_, err := st.mount("c1", layers.Image{}, view{})
	g.Expect(err).NotTo(HaveOccurred())

	number := 0
	mount := func(subPath string) (string, error) {
		number++
		return st.mountImage("c1", number, image, subPath, view{})
	}
	whole, err := mount("")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadFile(filepath.Join(whole, "data", "f"))).To(Equal([]byte("high")))
	g.Expect(os.ReadFile(filepath.Join(whole, "hidden"))).To(Equal([]byte("x")))
	info, err := os.Stat(whole)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o751)), "the image's own root")

	for subPath, file := range map[string]string{
		"data": "f", "data/deep": "g", "inner": "g", "data/up/data": "f", "root": "canary", "./data/": "f",
	} {
		at, err := mount(subPath)
		g.Expect(err).NotTo(HaveOccurred(), subPath)
		g.Expect(filepath.Join(at, file)).To(BeARegularFile(), subPath)
		g.Expect(os.WriteFile(filepath.Join(at, "new"), nil, 0o600)).To(MatchError(syscall.EROFS))
		var fs unix.Statfs_t
		g.Expect(unix.Statfs(at, &fs)).To(Succeed())
		const want = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
		g.Expect(fs.Flags&want).To(Equal(int64(want)), subPath)
	}
	at, err := mount("canary")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadFile(at)).To(Equal([]byte("the image's own")), "a file")

	// In an image "/" is the image's, so links that lead out find nothing, or what the image has there.
	for _, subPath := range []string{"absolute", "relative", "proc", "file", "data/up" + outside, "loop", "missing", "data/f/x", "fifo", "null"} {
		at, err := mount(subPath)
		g.Expect(err).To(MatchError(ContainSubstring("c1")), "%s: %s", subPath, at)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%s: %v", subPath, err)
	}
	g.Expect(st.remove("c1")).To(Succeed())
	g.Expect(filepath.Join(st.dir, containersDir, "c1")).NotTo(BeADirectory())
	g.Expect(filepath.Join(st.images(), "layers", "high", "data", "f")).To(BeARegularFile(), "layers are the pod's")
	mounts, err := os.ReadFile("/proc/self/mounts")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(mounts)).NotTo(ContainSubstring(filepath.Join(st.dir, containersDir)))
}

func TestMountImageInAUserNamespace(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	st := testStore(t, dir)
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	image := layers.Image{LayerDirs: []string{layer(t, st, "l", map[string]string{"data/f": "content"})}}
	_, err := st.mount("c1", image, view{ids: userns})
	if errdefs.Is(err, errdefs.Unsupported) {
		t.Skipf("no idmapped layers on this kernel: %v", err)
	}
	g.Expect(err).NotTo(HaveOccurred())
	for number, subPath := range []string{"", "data"} {
		at, err := st.mountImage("c1", number, image, subPath, view{ids: userns})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(owner(t, at)).To(Equal([2]uint32{300000, 400000}))
	}
	scratch, err := st.mountImage("c1", 9, layers.Image{}, "", view{ids: userns})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadDir(scratch)).To(BeEmpty())
	g.Expect(st.remove("c1")).To(Succeed())
}

func TestVolumesHaveTheImagesContent(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	outside := filepath.Join(dir, "outside")
	g.Expect(os.MkdirAll(filepath.Join(outside, "data"), 0o700)).To(Succeed())
	st := testStore(t, dir)
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	l := layer(t, st, "l", map[string]string{"data/f": "the image's"})
	g.Expect(os.Symlink(outside, filepath.Join(l, "link"))).To(Succeed())
	rootfs, err := st.mount("c1", layers.Image{LayerDirs: []string{l}}, view{})
	g.Expect(err).NotTo(HaveOccurred())

	bundle := filepath.Join(dir, "bundle")
	empty := func(name string) string {
		source := filepath.Join(bundle, crioVolumes, name)
		g.Expect(os.MkdirAll(source, 0o755)).To(Succeed())
		return source
	}
	crios := []string{"private", "bind", "rw"}
	spec := &rspec.Spec{Process: &rspec.Process{}, Mounts: []rspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/data", Type: "bind", Source: empty("a"), Options: crios},
		{Destination: "/new/dir", Type: "bind", Source: empty("b"), Options: crios},
		{Destination: "/link/in", Type: "bind", Source: empty("c"), Options: crios},
		{Destination: "/mine", Type: "bind", Source: outside, Options: crios},
		{Destination: "/mine/deep", Type: "bind", Source: empty("d"), Options: crios},
		{Destination: "/pods", Type: "bind", Source: empty("e"), Options: crios},
	}}
	volumes := []string{"/data", "/new/dir/", "/link/in", "/mine/deep"}
	id, err := st.complete("c1", bundle, rootfs, spec, bundlegen.User{Spec: "1000:1001"}, volumes)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(id.UID).To(Equal(uint32(1000)))
	at := map[string]rspec.Mount{}
	for _, m := range spec.Mounts {
		at[m.Destination] = m
	}
	g.Expect(at).NotTo(HaveKey("/mine/deep"), "it lies in what the pod mounts there")
	g.Expect(at["/pods"].Source).To(Equal(filepath.Join(bundle, crioVolumes, "e")), "no volume of the image's")
	g.Expect(at["/mine"].Source).To(Equal(outside))
	for destination, path := range map[string]string{"/data": "data", "/new/dir": "new/dir", "/link/in": "link"} {
		m := at[destination]
		g.Expect(m.Options).To(Equal(crios))
		g.Expect(m.Source).To(HavePrefix(st.container("c1")), destination)
		// Written to the volume, it is in the container's root file system, in the store.
		g.Expect(os.WriteFile(filepath.Join(m.Source, "written"), []byte(path), 0o600)).To(Succeed())
	}
	g.Expect(os.ReadFile(filepath.Join(at["/data"].Source, "f"))).To(Equal([]byte("the image's")))
	g.Expect(os.ReadFile(filepath.Join(rootfs, "data", "written"))).To(Equal([]byte("data")))
	g.Expect(owner(t, at["/new/dir"].Source)).To(Equal([2]uint32{1000, 1001}), "made for the user")
	g.Expect(os.ReadDir(outside)).To(HaveLen(1), "no link leads out")
	g.Expect(os.ReadDir(filepath.Join(outside, "data"))).To(BeEmpty())
	g.Expect(st.remove("c1")).To(Succeed())
	g.Expect(filepath.Join(l, "data", "f")).To(BeARegularFile())
}
