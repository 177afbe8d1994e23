package podrun

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestOnlyThePodsOwnCgroupIsRemoved: a record that names another cgroup, or none, must not
// cost the machine its processes.
func TestOnlyThePodsOwnCgroupIsRemoved(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("a", 64)
	// A cgroup that is there, of a process that must live. Without root the names alone
	// are tested: nothing could be killed.
	group := filepath.Join(cgroupMount, "pids", "husk-podrun-test-"+filepath.Base(t.TempDir()))
	spared := exec.CommandContext(t.Context(), "sleep", "100")
	NewWithT(t).Expect(spared.Start()).To(Succeed())
	ended := make(chan error, 1)
	go func() { ended <- spared.Wait() }()
	if os.Mkdir(group, 0o755) == nil {
		t.Cleanup(func() { _ = spared.Process.Kill(); <-ended; _ = os.Remove(group) })
		pid := []byte(strconv.Itoa(spared.Process.Pid))
		NewWithT(t).Expect(os.WriteFile(filepath.Join(group, "cgroup.procs"), pid, 0)).To(Succeed())
	}
	for _, bad := range []string{
		"/", ".", "..", "//", "/..", "husk/pod-" + id, "/husk", "/" + filepath.Base(group), "/husk/pod-" + id + "/", "/husk/../pod-" + id,
		"/husk/pod-" + strings.Repeat("b", 64), "/pod-",
	} {
		NewWithT(t).Expect(removeCgroup(t.Context(), bundles.Pod{ID: id, CgroupParent: bad})).NotTo(Succeed(), bad)
	}
	NewWithT(t).Expect(removeCgroup(t.Context(), bundles.Pod{ID: id})).To(Succeed(), "it has none")
	NewWithT(t).Expect(removeCgroup(t.Context(), bundles.Pod{CgroupParent: "/pod-"})).NotTo(Succeed(), "no ID")
	NewWithT(t).Consistently(ended, 100*time.Millisecond).ShouldNot(Receive(), "nobody is killed")
	NewWithT(t).Expect(removeCgroup(t.Context(), bundles.Pod{ID: id, CgroupParent: "/husk-not-there/pod-" + id})).To(Succeed())
}

// TestRemoveTreeKeepsWhatIsMounted: also below a path that mountinfo escapes.
func TestRemoveTreeKeepsWhatIsMounted(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := filepath.Join(t.TempDir(), "with a space")
	at := filepath.Join(dir, "mounted")
	source := t.TempDir()
	kept := filepath.Join(source, "kept")
	g.Expect(os.MkdirAll(at, 0o755)).To(Succeed())
	g.Expect(os.WriteFile(kept, nil, 0o600)).To(Succeed())
	if err := unix.Mount(source, at, "", unix.MS_BIND, ""); err != nil {
		t.Skip("needs root to mount:", err)
	}
	err := removeTree(dir)
	g.Expect(unix.Unmount(at, 0)).To(Succeed())
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse), "%v", err)
	g.Expect(kept).To(BeAnExistingFile())
	g.Expect(removeTree(dir)).To(Succeed())
	g.Expect(dir).NotTo(BeAnExistingFile())
}
