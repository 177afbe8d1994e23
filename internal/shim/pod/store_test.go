package pod_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/shim/pod"
)

// otherPod returns another pod of the same machine as p, without any state.
func otherPod(t *testing.T, p pod.Pod, digit string) pod.Pod {
	t.Helper()
	other, err := pod.New(filepath.Dir(filepath.Dir(p.Dir())), strings.Repeat(digit, 64))
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// canary is a directory that nothing here may change.
func canary(t *testing.T) (dir string, unharmed func() bool) {
	t.Helper()
	dir = t.TempDir()
	file := filepath.Join(dir, "canary")
	if err := os.WriteFile(file, []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, func() bool {
		data, err := os.ReadFile(file)
		return err == nil && string(data) == "alive"
	}
}

func TestStoreOnDisk(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	dir := filepath.Join(t.TempDir(), "a", "stores")
	f, err := p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	at := filepath.Join(dir, p.ID())
	g.Expect(os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))).To(Equal(at), "what is opened is what is there")
	g.Expect(f.Close()).To(Succeed())
	for _, d := range []string{dir, at} {
		info, err := os.Stat(d)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(info.Mode()).To(Equal(os.ModeDir | 0o700))
	}
	g.Expect(os.MkdirAll(filepath.Join(at, "images", "layers"), 0o700)).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(at, "images", "layers", "secret"), nil, 0)).To(Succeed())

	// An earlier pod of that ID left something.
	f, err = p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	g.Expect(os.ReadDir(at)).To(BeEmpty())

	g.Expect(os.WriteFile(filepath.Join(at, "secret"), nil, 0)).To(Succeed())
	g.Expect(p.RemoveStore()).To(Succeed())
	g.Expect(at).NotTo(BeADirectory())
	g.Expect(p.RemoveStore()).To(Succeed())
	g.Expect(p.Dir()).To(BeADirectory(), "the pod is still there")
	g.Expect(newPod(t).RemoveStore()).To(Succeed(), "most pods have none")
}

// The first pods of a node come at once, to a directory that is not there yet.
func TestStoresOfManyPodsAtOnce(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	for range 50 {
		dir := filepath.Join(t.TempDir(), "stores")
		errs := make([]error, 8)
		var all sync.WaitGroup
		for i := range errs {
			other := otherPod(t, p, fmt.Sprint(i))
			g.Expect(other.Create()).To(Succeed())
			all.Go(func() {
				f, err := other.CreateStore(dir)
				if err == nil {
					err = f.Close()
				}
				errs[i] = err
			})
		}
		all.Wait()
		g.Expect(errors.Join(errs...)).NotTo(HaveOccurred())
	}
}

// Every way in which a pod ends leads to Remove, also in a process that never saw the store.
func TestRemoveTakesTheStoreOnDisk(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	dir := t.TempDir()
	f, err := p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	again := otherPod(t, p, "a")
	g.Expect(again.Remove()).To(Succeed())
	g.Expect(filepath.Join(dir, p.ID())).NotTo(BeADirectory())
	g.Expect(p.Dir()).NotTo(BeADirectory())
	g.Expect(again.Remove()).To(Succeed())
}

// While the store is mounted where the caller is, the pod runs: neither may go.
func TestRemoveSparesTheStoreInUse(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	dir := t.TempDir()
	f, err := p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(p.Store(), "mounted"), nil, 0o600)).To(Succeed())
	g.Expect(p.Remove()).NotTo(Succeed())
	g.Expect(filepath.Join(dir, p.ID())).To(BeADirectory())
}

func TestStoreIsNoTrap(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		// set prepares dir, and may return another one to use.
		set  func(g *WithT, dir string) string
		text string
	}{
		"others may write": {func(g *WithT, dir string) string {
			g.Expect(os.Chmod(dir, 0o770)).To(Succeed())
			return dir
		}, "write"},
		"of somebody else": {func(g *WithT, dir string) string {
			g.Expect(os.Chown(dir, 1234, 0)).To(Succeed())
			return dir
		}, "write"},
		"something else's": {func(g *WithT, dir string) string {
			g.Expect(os.Mkdir(filepath.Join(dir, "lib"), 0o700)).To(Succeed())
			return dir
		}, "not Husk's, such as lib"},
		"a file": {func(g *WithT, dir string) string {
			g.Expect(os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)).To(Succeed())
			return filepath.Join(dir, "f")
		}, "not a directory"},
		"relative": {func(*WithT, string) string { return "." }, "not absolute"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			p := newPod(t)
			_, err := p.CreateStore(tc.set(g, t.TempDir()))
			g.Expect(err).To(MatchError(And(ContainSubstring(tc.text), ContainSubstring(p.ID()))))
			g.Expect(p.Remove()).To(Succeed(), "nothing was noted")
		})
	}
}

func TestStoreFollowsNoLink(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	outside, unharmed := canary(t)
	dir := t.TempDir()
	f, err := p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	at := filepath.Join(dir, p.ID())

	// A link in the store's place, and one in it.
	g.Expect(os.Remove(at)).To(Succeed())
	g.Expect(os.Symlink(outside, at)).To(Succeed())
	f, err = p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	g.Expect(at).To(BeADirectory())
	g.Expect(os.Symlink(outside, filepath.Join(at, "link"))).To(Succeed())
	g.Expect(p.RemoveStore()).To(Succeed())
	g.Expect(unharmed()).To(BeTrue())

	// The directory of stores turned into a link after the store was made.
	f, err = p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	g.Expect(os.Rename(dir, dir+".moved")).To(Succeed())
	g.Expect(os.Mkdir(filepath.Join(outside, p.ID()), 0o700)).To(Succeed())
	g.Expect(os.Symlink(outside, dir)).To(Succeed())
	g.Expect(p.Remove()).To(MatchError(syscall.ELOOP))
	g.Expect(filepath.Join(outside, p.ID())).To(BeADirectory())
	g.Expect(p.Dir()).To(BeADirectory(), "it is still known where the store was")
	g.Expect(os.Remove(dir)).To(Succeed())
	g.Expect(os.Rename(dir+".moved", dir)).To(Succeed())
	g.Expect(p.Remove()).To(Succeed())

	// The operator's own link, on the other hand, is what the operator wants.
	p = newPod(t)
	real := t.TempDir()
	g.Expect(os.Symlink(real, dir+".link")).To(Succeed())
	f, err = p.CreateStore(dir + ".link")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	g.Expect(filepath.Join(real, p.ID())).To(BeADirectory())
	g.Expect(p.Remove()).To(Succeed())
	g.Expect(filepath.Join(real, p.ID())).NotTo(BeADirectory())
}

func TestSweepStores(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	dir := t.TempDir()
	f, err := p.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	outside, unharmed := canary(t)

	// Of a pod whose state went with the machine's memory, half made or whole.
	for _, digit := range []string{"b", "c"} {
		left := filepath.Join(dir, strings.Repeat(digit, 64))
		g.Expect(os.MkdirAll(filepath.Join(left, "images"), 0o700)).To(Succeed())
		g.Expect(os.Symlink(outside, filepath.Join(left, "images", "link"))).To(Succeed())
	}
	g.Expect(os.Symlink(outside, filepath.Join(dir, strings.Repeat("d", 64)))).To(Succeed())
	// Of a pod that is, although its shim may not.
	alive := otherPod(t, p, "e")
	g.Expect(alive.Create()).To(Succeed())
	f, err = alive.CreateStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	g.Expect(os.Mkdir(filepath.Join(dir, "lost+found"), 0o700)).To(Succeed())

	g.Expect(p.SweepStores(dir)).To(Succeed())
	left := func(dir string) (names []string) {
		entries, err := os.ReadDir(dir)
		g.Expect(err).NotTo(HaveOccurred())
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	g.Expect(left(dir)).To(ConsistOf(p.ID(), alive.ID(), "lost+found", HavePrefix(".")))
	g.Expect(unharmed()).To(BeTrue())

	// A directory that is none of stores, named by mistake.
	lib := t.TempDir()
	g.Expect(os.Mkdir(filepath.Join(lib, "dpkg"), 0o700)).To(Succeed())
	g.Expect(p.SweepStores(lib)).To(Succeed())
	g.Expect(left(lib)).To(ConsistOf("dpkg"))
	g.Expect(p.SweepStores(filepath.Join(lib, "missing"))).To(Succeed())
	g.Expect(filepath.Join(lib, "missing")).NotTo(BeADirectory())
	g.Expect(os.Chmod(dir, 0o777)).To(Succeed()) //nolint:gosec // what is refused
	g.Expect(p.SweepStores(dir)).To(MatchError(fs.ErrPermission))
}
