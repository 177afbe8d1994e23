package podrun

import (
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// engine has a store of its own. What it would ask a shim or a CNI plugin fails.
func engine(t *testing.T) *Engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, as husk does")
	}
	dir := t.TempDir()
	store, err := bundles.Open(bundles.Options{GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Driver: "vfs"})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return &Engine{Store: store, StateDir: filepath.Join(dir, "state"), Self: "/usr/bin/husk"}
}

// pod makes the record of a pod whose monitor is gone.
func (e *Engine) pod(t *testing.T, change func(*bundles.Container)) bundles.Container {
	t.Helper()
	g := NewWithT(t)
	p := podOf(NetworkHost, "")
	p.Runtime.Path = "/bin/false"
	p.Labels = map[string]string{ownLabel: "pod"}
	change(&p.Container)
	spec, err := e.sandboxSpec(p)
	g.Expect(err).NotTo(HaveOccurred())
	c, err := e.Store.Create(t.Context(), p.Container, spec)
	g.Expect(err).NotTo(HaveOccurred())
	return c
}

func TestSweepRemovesADeadPod(t *testing.T) {
	t.Parallel()
	g, e := NewWithT(t), engine(t)
	c := e.pod(t, func(*bundles.Container) {})
	for _, dir := range []string{e.podDir(c.ID), e.podDir("lost")} {
		g.Expect(os.MkdirAll(filepath.Join(dir, "io"), stateMode)).To(Succeed())
	}
	g.Expect(e.Sweep(t.Context())).To(Succeed())
	g.Expect(e.podDir(c.ID)).NotTo(BeADirectory())
	g.Expect(e.podDir("lost")).NotTo(BeADirectory(), "of no record")
	_, err := e.Store.Get(t.Context(), c.ID)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
}

// TestSweepLeavesWhatIsAtWork: a pod whose lock is held.
func TestSweepLeavesWhatIsAtWork(t *testing.T) {
	t.Parallel()
	g, e := NewWithT(t), engine(t)
	c := e.pod(t, func(*bundles.Container) {})
	l, err := tryLock(e.podLock(c.ID))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(e.Sweep(t.Context())).To(Succeed())
	_, err = e.Store.Get(t.Context(), c.ID)
	g.Expect(err).NotTo(HaveOccurred())
	l.release()
	g.Expect(e.Sweep(t.Context())).To(Succeed())
	_, err = e.Store.Get(t.Context(), c.ID)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
}

// TestSweepLeavesOthers: another program's pod in the same store is neither seen nor
// touched, whatever its record says.
func TestSweepLeavesOthers(t *testing.T) {
	t.Parallel()
	g, e := NewWithT(t), engine(t)
	c := e.pod(t, func(c *bundles.Container) { c.Labels, c.Pod.CgroupParent = nil, "" })
	g.Expect(e.Sweep(t.Context())).To(Succeed())
	there, err := e.Store.Get(t.Context(), c.ID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(there.State).To(Equal(c.State))
	g.Expect(e.Pods(t.Context())).To(BeEmpty())
	_, err = e.FindPod(t.Context(), "p")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	_, err = e.getPod(t.Context(), c.ID)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unsupported))
}

// TestSweepTouchesNoOtherCgroup: a record of ours that names a cgroup which is not the
// pod's is an error, and stays.
func TestSweepTouchesNoOtherCgroup(t *testing.T) {
	t.Parallel()
	g, e := NewWithT(t), engine(t)
	c := e.pod(t, func(c *bundles.Container) { c.Pod.CgroupParent = "/husk-run" })
	g.Expect(e.Sweep(t.Context())).To(MatchError(ContainSubstring("not the cgroup of pod")))
	_, err := e.Store.Get(t.Context(), c.ID)
	g.Expect(err).NotTo(HaveOccurred())
}
