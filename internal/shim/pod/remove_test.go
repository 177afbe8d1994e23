package pod_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/pod"
)

// fewFilesEnv is set for a test that runs in a process which can open few files.
const fewFilesEnv = "HUSK_TEST_FEW_FILES"

// deep makes a chain of directories below dir, each with a file and a directory beside
// the next one.
func deep(t *testing.T, dir string, levels int) {
	t.Helper()
	g := NewWithT(t)
	at, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	g.Expect(err).NotTo(HaveOccurred())
	for range levels {
		for _, name := range []string{"1", "d"} {
			g.Expect(unix.Mkdirat(at, name, 0)).To(Succeed())
		}
		g.Expect(unix.Mknodat(at, "f", unix.S_IFREG, 0)).To(Succeed())
		next, err := unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(unix.Close(at)).To(Succeed())
		at = next
	}
	g.Expect(unix.Close(at)).To(Succeed())
}

// A container may make directories deeper than a process may have descriptors: were its
// store not to be removed for that, no pod could have one on that disk any more.
func TestRemoveStoreOfAnyDepth(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	if os.Getenv(fewFilesEnv) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), fewFilesEnv+"=1")
		out, err := cmd.CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred(), "%s", out)
		g.Expect(string(out)).To(ContainSubstring("--- PASS: " + t.Name()))
		return
	}
	const files, levels = 64, 500
	g.Expect(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files})).To(Succeed())
	p := newPod(t)
	dir := t.TempDir()
	f, err := p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	at := filepath.Join(dir, p.ID())
	deep(t, at, levels)
	g.Expect(p.RemoveStore()).To(Succeed())
	g.Expect(at).NotTo(BeADirectory())

	left := otherPod(t, p, "b")
	g.Expect(os.Mkdir(filepath.Join(dir, left.ID()), 0o700)).To(Succeed())
	deep(t, filepath.Join(dir, left.ID()), levels)
	g.Expect(p.SweepStores(dir)).To(Succeed())
	g.Expect(filepath.Join(dir, left.ID())).NotTo(BeADirectory())
}

func TestRemoveAll(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	outside, unharmed := canary(t)
	top := t.TempDir()
	dir, err := os.Open(top)
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = dir.Close() })
	g.Expect(pod.RemoveAll(dir, "nothing")).To(Succeed())
	g.Expect(os.Symlink(outside, filepath.Join(top, "link"))).To(Succeed())
	g.Expect(pod.RemoveAll(dir, "link")).To(Succeed())

	// After a reboot the shims of many pods remove the same stores.
	tree := filepath.Join(top, "tree")
	g.Expect(os.Mkdir(tree, 0o700)).To(Succeed())
	for i := range 20 {
		sub := filepath.Join(tree, fmt.Sprint("sub", i))
		g.Expect(os.Mkdir(sub, 0o700)).To(Succeed())
		g.Expect(os.Symlink(outside, filepath.Join(sub, "link"))).To(Succeed())
		deep(t, sub, 50)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { NewWithT(t).Expect(pod.RemoveAll(dir, "tree")).To(Succeed()) })
	}
	all.Wait()
	g.Expect(tree).NotTo(BeADirectory())
	g.Expect(unharmed()).To(BeTrue())
}

// What is mounted in a directory is not the pod's, and the rest goes all the same.
func TestRemoveAllEntersNoMount(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	outside, unharmed := canary(t)
	top := t.TempDir()
	mounted := filepath.Join(top, "tree", "sub", "mounted")
	g.Expect(os.MkdirAll(mounted, 0o700)).To(Succeed())
	if err := unix.Mount(outside, mounted, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("nothing can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	secret := filepath.Join(top, "tree", "secret")
	g.Expect(os.WriteFile(secret, nil, 0o600)).To(Succeed())
	dir, err := os.Open(top)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = dir.Close() }()
	g.Expect(pod.RemoveAll(dir, "tree")).To(MatchError(unix.EBUSY))
	g.Expect(unharmed()).To(BeTrue())
	g.Expect(secret).NotTo(BeAnExistingFile())
	g.Expect(unix.Unmount(mounted, 0)).To(Succeed())
	g.Expect(pod.RemoveAll(dir, "tree")).To(Succeed())
	g.Expect(filepath.Join(top, "tree")).NotTo(BeADirectory())
}
