package podnet

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestNewNetns(t *testing.T) {
	t.Parallel()
	needNode(t)
	g := NewWithT(t)
	dir := t.TempDir()
	own, err := os.Readlink("/proc/self/ns/net")
	g.Expect(err).NotTo(HaveOccurred())
	var wg sync.WaitGroup
	paths, errs := make([]string, 8), make([]error, 8)
	for i := range paths {
		paths[i] = filepath.Join(dir, "ns"+string(rune('a'+i)))
		wg.Go(func() { errs[i] = NewNetns(paths[i]) })
	}
	wg.Wait()
	g.Expect(errs).To(HaveEach(BeNil()))
	inodes := map[uint64]bool{}
	for _, path := range paths {
		g.Expect(isNamespace(path)).To(BeTrue())
		var stat unix.Stat_t
		g.Expect(unix.Stat(path, &stat)).To(Succeed())
		inodes[stat.Ino] = true
		out, err := exec.Command("nsenter", "--net="+path, "ip", "-o", "link", "show", "up").Output()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(out)).To(And(HavePrefix("1: lo:"), ContainSubstring("LOOPBACK,UP"), Not(ContainSubstring("\n2:"))))
		g.Expect(errdefs.KindOf(NewNetns(path))).To(Equal(errdefs.InvalidArgument), "there is one already")
		g.Expect(isNamespace(path)).To(BeTrue(), "which stays")
	}
	g.Expect(inodes).To(HaveLen(len(paths)), "each is another")
	g.Eventually(func() ([]string, error) { // a thread takes a moment to end
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		var strangers []string
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != own {
				strangers = append(strangers, ns)
			}
		}
		return strangers, err
	}).Should(BeEmpty(), "no thread stays in a pod's network")
	for _, path := range paths {
		for range 2 {
			g.Expect(RemoveNetns(path)).To(Succeed())
			g.Expect(path).NotTo(BeAnExistingFile())
		}
	}
}

func TestRemoveNetns(t *testing.T) {
	t.Parallel()
	needNode(t)
	g := NewWithT(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain") // husk was killed before the mount
	g.Expect(os.WriteFile(plain, nil, 0o400)).To(Succeed())
	g.Expect(RemoveNetns(plain)).To(Succeed())
	g.Expect(plain).NotTo(BeAnExistingFile())
	g.Expect(RemoveNetns(filepath.Join(dir, "none", "ns"))).To(Succeed())

	twice := filepath.Join(dir, "twice")
	g.Expect(NewNetns(twice)).To(Succeed())
	g.Expect(unix.Mount(twice, twice, "", unix.MS_BIND, "")).To(Succeed())
	g.Expect(RemoveNetns(twice)).To(Succeed())
	g.Expect(twice).NotTo(BeAnExistingFile())

	// A link is removed, and what it leads to is not unmounted.
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	g.Expect(NewNetns(real)).To(Succeed())
	g.Expect(os.Symlink(real, link)).To(Succeed())
	g.Expect(RemoveNetns(link)).To(Succeed())
	g.Expect(isNamespace(real)).To(BeTrue())
	g.Expect(RemoveNetns(real)).To(Succeed())

	full := filepath.Join(dir, "full")
	g.Expect(os.MkdirAll(filepath.Join(full, "more"), 0o700)).To(Succeed())
	g.Expect(RemoveNetns(full)).NotTo(Succeed())
	g.Expect(NewNetns(filepath.Join(dir, "none", "ns"))).NotTo(Succeed())
	g.Expect(filepath.Join(dir, "none")).NotTo(BeADirectory())
}

func TestIsNamespace(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(isNamespace("/proc/self/ns/net")).To(BeTrue())
	g.Expect(isNamespace(t.TempDir())).To(BeFalse())
	_, err := isNamespace(filepath.Join(t.TempDir(), "none"))
	g.Expect(err).To(MatchError(os.ErrNotExist))
}
