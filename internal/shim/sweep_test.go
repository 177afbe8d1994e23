package shim

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/pod"
)

func TestSweepRemovesWhatNobodyNeeds(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	m := Manager{StateDir: dir}
	g.Expect(m.Sweep(inNamespace(t))).To(Succeed(), "no pods at all")

	empty, living := mustPod(t, dir, "empty"), mustPod(t, dir, "living")
	g.Expect(empty.Create()).To(Succeed())
	g.Expect(living.Create()).To(Succeed())
	l, err := net.Listen("unix", living.Socket())
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = l.Close() }()
	other := filepath.Join(dir, "pods", "not a pod")
	g.Expect(os.WriteFile(other, nil, 0o600)).To(Succeed())

	unlock, err := m.lock(0) // a pod is being started
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(m.Sweep(inNamespace(t))).To(Succeed())
	g.Expect(empty.Dir()).To(BeADirectory(), "it may be the one that is being started")
	_, err = m.lock(unix.LOCK_NB)
	g.Expect(err).To(MatchError(unix.EWOULDBLOCK))
	unlock()

	g.Expect(m.Sweep(inNamespace(t))).To(Succeed())
	g.Expect(empty.Dir()).NotTo(BeADirectory())
	g.Expect(living.Dir()).To(BeADirectory())
	g.Expect(other).To(BeARegularFile())
}

// A damaged pod is reported and does not keep the others from being cleaned up.
func TestSweepGoesOnAfterAnError(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	damaged, empty := mustPod(t, dir, "damaged"), mustPod(t, dir, "empty")
	g.Expect(damaged.Create()).To(Succeed())
	g.Expect(empty.Create()).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(damaged.Dir(), "containers", "c1.json"), []byte("{"), 0o600)).To(Succeed())
	err := Manager{StateDir: dir}.Sweep(inNamespace(t))
	g.Expect(err).To(MatchError(ContainSubstring("pod damaged")))
	g.Expect(damaged.Dir()).To(BeADirectory())
	g.Expect(empty.Dir()).NotTo(BeADirectory())
}

func TestSweepGroups(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	root := t.TempDir()
	const nobody = 1 << 22 // above the kernel's greatest pid
	keep := []string{fmt.Sprintf("husk-pull-%d-1", os.Getpid()), "husk-pull-x-1", "husk-c1", fmt.Sprintf("xhusk-pull-%d-1", nobody)}
	busy := fmt.Sprintf("pod/husk-pull-%d-2", nobody)
	gone := fmt.Sprintf("pod/husk-pull-%d-3", nobody)
	for _, name := range append(keep, busy, gone) {
		g.Expect(os.MkdirAll(filepath.Join(root, name), 0o755)).To(Succeed())
	}
	// The kernel does not remove a group with a process in it, nor this directory.
	g.Expect(os.WriteFile(filepath.Join(root, busy, "file"), nil, 0o600)).To(Succeed())
	g.Expect(sweepGroups(t.Context(), root)).To(Succeed())
	for _, name := range append(keep, busy) {
		g.Expect(filepath.Join(root, name)).To(BeADirectory())
	}
	g.Expect(filepath.Join(root, gone)).NotTo(BeADirectory())
}

func (e *e2e) sweep() {
	e.t.Helper()
	cmd := exec.CommandContext(e.t.Context(), "/proc/self/exe", sweepCommand)
	cmd.Env = append(os.Environ(), binaryEnv+"=1")
	out, err := cmd.CombinedOutput()
	e.g.Expect(err).NotTo(HaveOccurred(), "%s", out)
}

func TestSweepAnswersForAPodThatWasKilled(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	record, err := e.pod.Get(id)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.killKeeper()
	e.killShim()
	e.shimGone()
	e.sweep()

	// As a CRI-O that was restarted: it dials anew, and its first call waits for the end
	// of the containers.
	conn, err := net.Dial("unix", e.pod.Socket())
	e.g.Expect(err).NotTo(HaveOccurred())
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	tasks := taskapi.NewTaskClient(client)
	state, err := tasks.State(e.t.Context(), &taskapi.StateRequest{ID: id})
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(state).To(And(HaveField("Status", task.Status_STOPPED), HaveField("ExitStatus", uint32(pod.KilledStatus))))
	// Dead, if not yet reaped by whoever is its parent now: a zombie has no command line.
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", record.Pid))
	e.g.Expect(command).To(BeEmpty())
	e.sweep() // the pod has somebody now: nothing changes
	for _, container := range []string{id, e.sandboxID} {
		_, err = tasks.Delete(e.t.Context(), &taskapi.DeleteRequest{ID: container})
		e.g.Expect(err).NotTo(HaveOccurred())
		_, err = tasks.Shutdown(e.t.Context(), &taskapi.ShutdownRequest{ID: container})
		e.g.Expect(err).NotTo(HaveOccurred())
	}
	e.gone()
}

func TestSweepRemovesAPodThatCRIODoesNotKnow(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	for _, container := range []string{id, e.sandboxID} {
		e.g.Expect(os.RemoveAll(filepath.Join(e.dir, container))).To(Succeed())
	}
	e.killKeeper()
	e.killShim()
	e.shimGone()
	e.sweep()
	e.g.Eventually(e.pod.Dir, 20*time.Second).ShouldNot(BeADirectory())
	e.gone()
}
