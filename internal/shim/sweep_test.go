package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/keeper"
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

	unlock, err := m.lock(unix.LOCK_SH) // a pod is being started
	g.Expect(err).NotTo(HaveOccurred())
	another, err := m.lock(unix.LOCK_SH) // and does not hold up others
	g.Expect(err).NotTo(HaveOccurred())
	another()
	g.Expect(m.Sweep(inNamespace(t))).To(Succeed())
	g.Expect(empty.Dir()).To(BeADirectory(), "it may be the one that is being started")
	_, err = m.lock(unix.LOCK_EX | unix.LOCK_NB)
	g.Expect(err).To(MatchError(unix.EWOULDBLOCK))
	unlock()

	g.Expect(m.Sweep(inNamespace(t))).To(Succeed())
	g.Expect(empty.Dir()).NotTo(BeADirectory())
	g.Expect(living.Dir()).To(BeADirectory())
	g.Expect(other).To(BeARegularFile())
}

// A keeper that has no time to accept lives all the same: to take it for dead would kill
// its pod's containers.
func TestSweepSparesABusyKeeper(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := Manager{StateDir: t.TempDir()}
	busy := mustPod(t, m.StateDir, "busy")
	g.Expect(busy.Create()).To(Succeed())
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(unix.Bind(fd, &unix.SockaddrUnix{Name: busy.Socket()})).To(Succeed())
	g.Expect(unix.Listen(fd, 0)).To(Succeed())
	g.Eventually(func() error {
		conn, err := net.Dial("unix", busy.Socket())
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
		return err
	}).Should(MatchError(unix.EAGAIN), "there is no room in the queue")
	g.Expect(m.Sweep(inNamespace(t))).To(Succeed())
	g.Expect(busy.Dir()).To(BeADirectory())
	g.Expect(unix.Close(fd)).To(Succeed())
	g.Expect(m.Sweep(inNamespace(t))).To(Succeed())
	g.Expect(busy.Dir()).NotTo(BeADirectory())
}

// Whoever sweeps may live long, and where it stands is not the orphan's place.
func TestAnOrphansKeeper(t *testing.T) {
	needRoot(t)
	g := NewWithT(t)
	cwd, bundle := t.TempDir(), t.TempDir()
	t.Chdir(cwd)
	g.Expect(os.WriteFile("log", []byte("somebody's"), 0o600)).To(Succeed())
	p := mustPod(t, "", newID(t))
	adoptAlone(t, p, pod.Record{ID: "c1", Bundle: bundle, Runtime: "/bin/true"})
	conn, err := net.Dial("unix", p.Socket())
	g.Expect(err).NotTo(HaveOccurred())
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	tasks := taskapi.NewTaskClient(client)
	_, err = tasks.Delete(t.Context(), &taskapi.DeleteRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
	_, err = tasks.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Eventually(p.Dir, 5*time.Second).ShouldNot(BeADirectory())
	g.Expect(os.ReadFile("log")).To(BeEquivalentTo("somebody's"))
	g.Eventually(func() []string { return childrenCalled(t, keeper.Command) }, 5*time.Second).Should(BeEmpty(), "zombies")
}

// adoptAlone gives a keeper to a pod with that container.
func adoptAlone(t *testing.T, p pod.Pod, r pod.Record) {
	t.Helper()
	unlock, err := Manager{}.lock(unix.LOCK_SH) // no sweep of another pod's does it
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	t.Cleanup(func() { _ = p.Remove() })
	if err := errors.Join(p.Create(), p.Put(r)); err != nil {
		t.Fatal(err)
	}
	if keeps, err := (Manager{}).adopt(inNamespace(t), p); err != nil || !keeps {
		t.Fatalf("no keeper: %v", err)
	}
}

// childrenCalled returns /proc/PID/stat of the children of this process with that name.
func childrenCalled(t *testing.T, name string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		data, _ := os.ReadFile(file) // it may be gone
		_, after, ok := strings.Cut(string(data), "("+name+") ")
		if fields := strings.Fields(after); ok && len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			found = append(found, string(data))
		}
	}
	return found
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
	e.g.Eventually(func() (bool, error) {
		e.sweep() // does nothing while another test's pod starts
		return kept(e.pod)
	}, 10*time.Second).Should(BeTrue())

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
	e.g.Eventually(func() string {
		e.sweep() // does nothing while another test's pod starts
		return e.pod.Dir()
	}, 20*time.Second, 100*time.Millisecond).ShouldNot(BeADirectory())
	e.gone()
}
