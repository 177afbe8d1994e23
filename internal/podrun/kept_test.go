package podrun

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podnet"
)

// RUNROOT by a symlink (/var/run): mountinfo has the real path.
func TestRemoveTreeBehindALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as husk does")
	}
	g := NewWithT(t)
	base := t.TempDir()
	behind := filepath.Join(base, "run")
	at := filepath.Join(behind, "x", "mounted")
	source := t.TempDir()
	kept := filepath.Join(source, "kept")
	g.Expect(os.MkdirAll(at, 0o755)).To(Succeed())
	g.Expect(os.WriteFile(kept, nil, 0o600)).To(Succeed())
	g.Expect(os.Symlink(behind, filepath.Join(base, "var"))).To(Succeed())
	g.Expect(unix.Mount(source, at, "", unix.MS_BIND, "")).To(Succeed())
	err := removeTree(filepath.Join(base, "var", "x"))
	_ = unix.Unmount(at, unix.MNT_DETACH)
	g.Expect(err).To(HaveOccurred())
	g.Expect(kept).To(BeAnExistingFile())
}

// A stranger's variable holds up a sweep.
func TestAStrangersVariableHoldsNothingUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as husk does")
	}
	g := NewWithT(t)
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	cmd.Env = []string{"CNI_CONTAINERID=zz"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	g.Expect(cmd.Start()).To(Succeed())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := awaitOrphans(ctx, pluginOf("zz"))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	g.Expect(err).NotTo(HaveOccurred())
}

// A runtime's binary that is no more.
func TestSweepWithoutTheRuntime(t *testing.T) {
	g, e := NewWithT(t), engine(t)
	c := e.pod(t, func(c *bundles.Container) { c.Runtime.Path = "/no/such/shim"; c.Pod.CgroupParent = "" })
	dir, err := e.Store.RunDir(c.ID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o600)).To(Succeed())
	g.Expect(e.Sweep(t.Context())).To(Succeed())
}

// A monitor killed half way through up, and another joins without a sweep between.
func TestAHalfMadePodIsTakenDownFirst(t *testing.T) {
	g, e := NewWithT(t), engine(t)
	c := e.pod(t, func(c *bundles.Container) {
		c.Pod.Network, c.Pod.Netns, c.Pod.CgroupParent = NetworkNone, e.netns(c.ID), ""
	})
	g.Expect(os.MkdirAll(e.podDir(c.ID), stateMode)).To(Succeed())
	g.Expect(os.WriteFile(e.netns(c.ID), nil, 0o600)).To(Succeed())
	pod, err := e.getPod(t.Context(), c.ID)
	g.Expect(err).NotTo(HaveOccurred())
	err = e.ensureUp(t.Context(), pod, "")
	t.Cleanup(func() { g.Expect(podnet.RemoveNetns(e.netns(c.ID))).To(Succeed()) })
	g.Expect(err.Error()).NotTo(ContainSubstring("netns"))
}

// Names that podnet refuses only after the network is up.
func TestHostname(t *testing.T) {
	g := NewWithT(t)
	g.Expect(hostname("a..b", podID(), "bridge")).To(Equal(podID()[:12]))
}
