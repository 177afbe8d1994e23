package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// insideEnv names a directory to a test that runs in a mount namespace of its own.
const insideEnv = "HUSK_TEST_STORE"

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// oldKernel reports a kernel whose tmpfs does not know noswap.
func oldKernel(t *testing.T) bool {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("husk", dir, "tmpfs", 0, "noswap"); err != nil {
		return true
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	return false
}

// inMountNamespace runs the calling test in a process with a mount namespace like the
// shim's, and returns true there. dir is a directory that the host sees too.
func inMountNamespace(t *testing.T) (dir string, inside bool) {
	t.Helper()
	needRoot(t)
	g := NewWithT(t)
	if dir := os.Getenv(insideEnv); dir != "" {
		g.Expect(unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")).To(Succeed())
		return dir, true
	}
	dir = t.TempDir()
	g.Expect(os.Chmod(filepath.Dir(dir), 0o711)).To(Succeed()) // as /run is
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), "%s", out)
	g.Expect(string(out)).To(ContainSubstring("--- PASS: " + t.Name()))
	mounts, err := os.ReadFile("/proc/self/mounts")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(mounts)).NotTo(ContainSubstring(dir), "nothing reaches the host")
	return dir, false
}

// testStore is the store of a new pod.
func testStore(t *testing.T, dir string) *store {
	t.Helper()
	p := mustPod(t, filepath.Join(dir, "state"), "p1")
	if err := p.Create(); err != nil {
		t.Fatal(err)
	}
	return newStore(p)
}

// memory is the configuration of a store in memory.
func memory(size string) Config {
	return Config{Store: storeInMemory, StoreSize: size, StoreDir: "/no/such"}
}

// layer makes a layer of a store from files.
func layer(t *testing.T, st *store, name string, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(st.images(), "layers", name)
	for file, content := range files {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestStore(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	g := NewWithT(t)
	if !inside {
		g.Expect(os.ReadDir(mustPod(t, filepath.Join(dir, "state"), "p1").Store())).To(BeEmpty(), "the host sees an empty directory")
		return
	}
	st := testStore(t, dir)
	limit, used, kind := st.size()
	g.Expect([]any{limit, used, kind}).To(Equal([]any{int64(0), int64(0), ""}))
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	mounts, err := os.ReadFile("/proc/self/mounts")
	g.Expect(err).NotTo(HaveOccurred())
	if !oldKernel(t) {
		g.Expect(string(mounts)).To(MatchRegexp("husk "+st.dir+" tmpfs [^ ]*noswap"), "no layer goes to the host's swap")
	}
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	var fs unix.Statfs_t
	g.Expect(unix.Statfs(st.dir, &fs)).To(Succeed())
	g.Expect(int64(fs.Blocks) * fs.Bsize).To(Equal(int64(16 << 20)))
	g.Expect(st.limit()).To(Equal(int64(16 << 20)))
	g.Expect(fs.Files).To(Equal(uint64(16<<10)), "empty files are bounded too")

	// More layers than fit into mount(2)'s page by their full paths.
	var dirs []string
	for i := range 500 { // as many as overlayfs takes
		layer := filepath.Join(st.images(), "layers", fmt.Sprintf("%064d", i))
		g.Expect(os.MkdirAll(layer, 0o700)).To(Succeed())
		g.Expect(os.WriteFile(filepath.Join(layer, "top"), fmt.Append(nil, i), 0o600)).To(Succeed())
		dirs = append(dirs, layer)
	}
	rootfs, err := st.mount("c1", layers.Image{LayerDirs: dirs}, view{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadFile(filepath.Join(rootfs, "top"))).To(Equal([]byte("499")), "the last layer is the uppermost")
	g.Expect(os.WriteFile(filepath.Join(rootfs, "top"), []byte("c1"), 0o600)).To(Succeed())
	info, err := os.Stat(rootfs)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o755)), "users of the container enter it")

	// What a thread has started would end with it.
	threads, err := filepath.Glob("/proc/self/task/*")
	g.Expect(err).NotTo(HaveOccurred())
	defer func() {
		for _, thread := range threads {
			g.Expect(thread).To(BeADirectory())
		}
	}()
	g.Expect(os.Chown(dirs[0], 7, 8)).To(Succeed())
	g.Expect(os.Chmod(dirs[0], 0o555|os.ModeSticky)).To(Succeed())
	other, err := st.mount("c2", layers.Image{LayerDirs: dirs, RootDir: dirs[0]}, view{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadFile(filepath.Join(other, "top"))).To(Equal([]byte("499")), "what a container writes is its own")
	info, err = os.Stat(other)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode()).To(Equal(0o555|os.ModeSticky|os.ModeDir), "the image's own root")
	g.Expect(info.Sys().(*syscall.Stat_t)).To(And(HaveField("Uid", uint32(7)), HaveField("Gid", uint32(8))))
	scratch, err := st.mount("c3", layers.Image{}, view{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadDir(scratch)).To(BeEmpty())
	_, err = st.mount("c3", layers.Image{}, view{})
	g.Expect(err).To(MatchError(ContainSubstring("c3")))

	for _, id := range []string{"c1", "c2", "c3", "c3", "unknown"} {
		g.Expect(st.remove(id)).To(Succeed())
	}
	g.Expect(os.ReadDir(filepath.Join(st.dir, containersDir))).To(BeEmpty())
	limit, used, kind = st.size()
	g.Expect([]any{limit, kind}).To(Equal([]any{int64(16 << 20), "memory"}))
	g.Expect(used).To(And(BeNumerically(">=", 500*4096), BeNumerically("<", 16<<20)))
	g.Expect(st.close()).To(Succeed())
	g.Expect(st.close()).To(Succeed())
}

// A pod whose memory limit changes has another share of it.
func TestStoreFollowsItsSize(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	st := testStore(t, dir)
	size := func() int64 {
		var fs unix.Statfs_t
		g.Expect(unix.Statfs(st.dir, &fs)).To(Succeed())
		g.Expect(st.limit()).To(Equal(int64(fs.Blocks)*fs.Bsize), "what is promised is what there is")
		g.Expect(int64(fs.Files)).To(Equal(st.limit() >> 10))
		return st.limit()
	}
	for _, mib := range []int64{16, 32, 8} {
		g.Expect(st.open(memory(fmt.Sprintf("%dm", mib)), sandbox.Place{})).To(Succeed())
		g.Expect(size()).To(Equal(mib << 20))
	}
	g.Expect(os.WriteFile(filepath.Join(st.images(), "layer"), make([]byte, 4<<20), 0o600)).To(Succeed())
	g.Expect(st.open(memory("2m"), sandbox.Place{})).To(Succeed())
	g.Expect(size()).To(Equal(int64(8<<20)), "what is in it stays")
	onDisk := memory("2m")
	onDisk.Store = storeOnDisk
	g.Expect(st.open(onDisk, sandbox.Place{})).To(Succeed())
	_, _, kind := st.size()
	g.Expect(kind).To(Equal(storeInMemory), "a store does not move")
}

func TestStoreOnDisk(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	g := NewWithT(t)
	stores := filepath.Join(dir, "stores")
	cfg := Config{Store: storeOnDisk, StoreDir: stores, StoreSize: "1g"}
	if !inside {
		left := filepath.Join(stores, "p1")
		g.Expect(filepath.Join(left, "images", "layers", "l", "secret")).To(BeARegularFile(), "the host's disk has it")
		g.Expect(os.ReadDir(mustPod(t, filepath.Join(dir, "state"), "p1").Store())).To(BeEmpty())
		// The test's process is gone, as a shim that was killed. The next pod's removes
		// nothing of this one, whose state is there, and everything without it.
		g.Expect(os.RemoveAll(filepath.Join(dir, "state"))).To(Succeed())
		other := mustPod(t, filepath.Join(dir, "state"), "p2")
		g.Expect(other.SweepStores(stores)).To(Succeed())
		g.Expect(left).NotTo(BeADirectory())
		return
	}
	// An operator who turned to memory still gets rid of what is on the disk.
	before := newStore(mustPod(t, filepath.Join(dir, "state"), "p0"))
	g.Expect(before.pod.Create()).To(Succeed())
	g.Expect(before.open(cfg, sandbox.Place{})).To(Succeed())
	g.Expect(before.close()).To(Succeed())
	g.Expect(filepath.Join(stores, "p0", "images")).To(BeADirectory())
	g.Expect(os.RemoveAll(before.pod.Dir())).To(Succeed())
	st := testStore(t, dir)
	inMemory := cfg
	inMemory.Store = storeInMemory
	g.Expect(st.open(inMemory, sandbox.Place{})).To(Succeed())
	g.Expect(filepath.Join(stores, "p0")).NotTo(BeADirectory())
	g.Expect(st.close()).To(Succeed())

	g.Expect(st.open(cfg, sandbox.Place{})).To(Succeed())
	info, err := os.Stat(filepath.Join(stores, "p1"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o700)))
	g.Expect(info.Sys()).To(HaveField("Uid", uint32(0)))
	var fs unix.Statfs_t
	g.Expect(unix.Statfs(st.dir, &fs)).To(Succeed())
	g.Expect(fs.Flags & (unix.ST_NOSUID | unix.ST_NODEV)).To(Equal(int64(unix.ST_NOSUID | unix.ST_NODEV)))

	l := layer(t, st, "l", map[string]string{"secret": strings.Repeat("s", 1<<20)})
	rootfs, err := st.mount("c1", layers.Image{LayerDirs: []string{l}}, view{})
	if errors.Is(err, unix.EINVAL) {
		t.Skipf("no overlay on this file system: %v", err)
	}
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.WriteFile(filepath.Join(rootfs, "written"), make([]byte, 1<<20), 0o600)).To(Succeed())
	// What is mounted, a directory or a file, is not counted where it is mounted.
	_, err = st.mountImage("c1", 0, layers.Image{LayerDirs: []string{l}}, "secret", view{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Link(filepath.Join(l, "secret"), filepath.Join(l, "link"))).To(Succeed())
	limit, used, kind := st.size()
	g.Expect([]any{limit, kind}).To(Equal([]any{int64(1 << 30), storeOnDisk}))
	g.Expect(used).To(And(BeNumerically(">=", 2<<20), BeNumerically("<", 3<<20)), "the layer and what was written, once")
	g.Expect(os.WriteFile(filepath.Join(rootfs, "more"), make([]byte, 1<<20), 0o600)).To(Succeed())
	_, again, _ := st.size()
	g.Expect(again).To(Equal(used), "not counted too often")
	g.Expect(st.remove("c1")).To(Succeed())
	g.Expect(filepath.Join(l, "secret")).To(BeARegularFile())
	g.Expect(st.pod.Remove()).To(MatchError(unix.EBUSY), "not while it is mounted here")
	g.Expect(filepath.Join(l, "secret")).To(BeARegularFile())
}

// What cannot be removed of an earlier pod's store is in nobody's way.
func TestStoreOnDiskBesideWhatIsLeft(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	stores := filepath.Join(dir, "stores")
	cfg := Config{Store: storeOnDisk, StoreDir: stores, StoreSize: "1g"}
	st := testStore(t, dir)
	g.Expect(st.open(cfg, sandbox.Place{})).To(Succeed())
	busy := filepath.Join(stores, "p0", "busy")
	g.Expect(os.MkdirAll(busy, 0o700)).To(Succeed())
	g.Expect(unix.Mount(busy, busy, "", unix.MS_BIND, "")).To(Succeed())
	p := mustPod(t, filepath.Join(dir, "state"), "p2")
	g.Expect(p.Create()).To(Succeed())
	g.Expect(p.SweepStores(stores)).To(MatchError(unix.EXDEV), "a mount is not entered")
	next := newStore(p)
	g.Expect(next.open(cfg, sandbox.Place{})).To(Succeed())
	g.Expect(next.images()).To(BeADirectory())
	g.Expect(unix.Unmount(busy, 0)).To(Succeed())
	g.Expect(p.SweepStores(stores)).To(Succeed())
	g.Expect(filepath.Join(stores, "p0")).NotTo(BeADirectory())
}

func TestStoreOnDiskRefusesATrap(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	st := testStore(t, dir)
	g.Expect(os.Mkdir(filepath.Join(dir, "stores"), 0o777)).To(Succeed()) //nolint:gosec // what is refused
	g.Expect(os.Chmod(filepath.Join(dir, "stores"), 0o777)).To(Succeed()) //nolint:gosec // what is refused
	err := st.open(Config{Store: storeOnDisk, StoreDir: filepath.Join(dir, "stores"), StoreSize: "50%"}, sandbox.Place{})
	g.Expect(err).To(MatchError(And(ContainSubstring("write"), ContainSubstring("p1"))))
	_, _, kind := st.size()
	g.Expect(kind).To(BeEmpty())
	g.Expect(st.close()).To(Succeed())
	g.Expect(os.ReadDir(filepath.Join(dir, "stores"))).To(BeEmpty())
}

// A part of the label is the pod's word: it must not become options of the mount.
func TestStoreRefusesAHostileLabel(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	st := testStore(t, dir)
	g.Expect(st.open(memory("16m"), sandbox.Place{})).To(Succeed())
	const label = "system_u:object_r:container_file_t:"
	for _, level := range []string{`s0",lowerdir=/,x="`, `s0\`, "s0\n"} {
		_, err := st.mount("c1", layers.Image{}, view{label: label + level})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
		g.Expect(err).To(MatchError(ContainSubstring("is no SELinux label")))
		g.Expect(os.ReadDir(filepath.Join(st.container("c1"), rootfsDir))).To(BeEmpty())
		g.Expect(st.remove("c1")).To(Succeed())
	}
	g.Expect(checkLabel(label + "s0:c1,c2")).To(Succeed())
}

// A file system that cannot carry overlays, or idmapped mounts, is refused with a reason.
func TestStoreOnAnUnfitDisk(t *testing.T) {
	t.Parallel()
	dir, inside := inMountNamespace(t)
	if !inside {
		return
	}
	g := NewWithT(t)
	base := filepath.Join(dir, "base")
	stores := filepath.Join(dir, "stores")
	g.Expect(os.MkdirAll(stores, 0o700)).To(Succeed())
	g.Expect(os.Mkdir(base, 0o700)).To(Succeed())
	g.Expect(unix.Mount("husk", base, "tmpfs", 0, "")).To(Succeed())
	for _, name := range []string{"lower", "upper", "work"} {
		g.Expect(os.Mkdir(filepath.Join(base, name), 0o700)).To(Succeed())
	}
	g.Expect(unix.Mount("overlay", stores, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base))).To(Succeed())
	st := testStore(t, dir)
	g.Expect(st.open(Config{Store: storeOnDisk, StoreDir: stores, StoreSize: "50%"}, sandbox.Place{})).To(Succeed())
	image := layers.Image{LayerDirs: []string{layer(t, st, "l", map[string]string{"f": ""})}}
	for id, v := range map[string]view{"c1": {}, "c2": {ids: userns}} {
		_, err := st.mount(id, image, v)
		g.Expect(errdefs.Is(err, errdefs.Unsupported)).To(BeTrue(), "%v", err)
		g.Expect(err).To(MatchError(ContainSubstring(id)))
		g.Expect(st.remove(id)).To(Succeed())
	}
	g.Expect(os.ReadDir(filepath.Join(st.dir, containersDir))).To(BeEmpty())
	g.Expect(filepath.Join(image.LayerDirs[0], "f")).To(BeARegularFile())
}
