package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox/layers"
)

// insideEnv names a store's directory to a test that runs in a mount namespace of its own.
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

func TestStore(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestStoreInside$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), "%s", out)
	g.Expect(string(out)).To(ContainSubstring("--- PASS: TestStoreInside"))
	entries, err := os.ReadDir(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(entries).To(BeEmpty(), "the host sees an empty directory")
}

func TestStoreInside(t *testing.T) {
	dir := os.Getenv(insideEnv)
	if dir == "" {
		t.Skip("run by TestStore")
	}
	g := NewWithT(t)
	g.Expect(unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")).To(Succeed())
	st := newStore(dir)
	g.Expect(st.open("16m")).To(Succeed())
	mounts, err := os.ReadFile("/proc/self/mounts")
	g.Expect(err).NotTo(HaveOccurred())
	if !oldKernel(t) {
		g.Expect(string(mounts)).To(MatchRegexp("husk "+dir+" tmpfs [^ ]*noswap"), "no layer goes to the host's swap")
	}
	g.Expect(st.open("16m")).To(Succeed())
	var fs unix.Statfs_t
	g.Expect(unix.Statfs(dir, &fs)).To(Succeed())
	g.Expect(int64(fs.Blocks) * fs.Bsize).To(Equal(int64(16 << 20)))

	// More layers than fit into mount(2)'s page by their full paths.
	var dirs []string
	for i := range 500 { // as many as overlayfs takes
		layer := filepath.Join(st.images(), "layers", fmt.Sprintf("%064d", i))
		g.Expect(os.MkdirAll(layer, 0o700)).To(Succeed())
		g.Expect(os.WriteFile(filepath.Join(layer, "top"), fmt.Append(nil, i), 0o600)).To(Succeed())
		dirs = append(dirs, layer)
	}
	rootfs, err := st.mount("c1", layers.Image{LayerDirs: dirs}, "")
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
	other, err := st.mount("c2", layers.Image{LayerDirs: dirs, RootDir: dirs[0]}, "")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadFile(filepath.Join(other, "top"))).To(Equal([]byte("499")), "what a container writes is its own")
	info, err = os.Stat(other)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode()).To(Equal(0o555|os.ModeSticky|os.ModeDir), "the image's own root")
	g.Expect(info.Sys().(*syscall.Stat_t)).To(And(HaveField("Uid", uint32(7)), HaveField("Gid", uint32(8))))
	scratch, err := st.mount("c3", layers.Image{}, "")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadDir(scratch)).To(BeEmpty())
	_, err = st.mount("c3", layers.Image{}, "")
	g.Expect(err).To(MatchError(ContainSubstring("c3")))

	for _, id := range []string{"c1", "c2", "c3", "c3", "unknown"} {
		g.Expect(st.remove(id)).To(Succeed())
	}
	g.Expect(os.ReadDir(filepath.Join(dir, containersDir))).To(BeEmpty())
	g.Expect(st.close()).To(Succeed())
	g.Expect(st.close()).To(Succeed())
}
