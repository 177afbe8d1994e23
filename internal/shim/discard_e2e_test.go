package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	runtimeoptions "github.com/containerd/containerd/pkg/runtimeoptions/v1"
	"github.com/containerd/containerd/protobuf"
	"github.com/containerd/typeurl/v2"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/shim/pod"
)

// wrapRuntime puts a script in front of runc that makes each delete fail, while there is a
// file called broken, and that holds it up while there is one called gate; then it makes
// one called reached. It returns the paths of the three.
func (e *e2e) wrapRuntime() (broken, gate, reached string) {
	e.t.Helper()
	runc, err := exec.LookPath("runc")
	e.g.Expect(err).NotTo(HaveOccurred())
	broken, gate, reached = filepath.Join(e.dir, "broken"), filepath.Join(e.dir, "gate"), filepath.Join(e.dir, "reached")
	e.t.Cleanup(func() { _ = errors.Join(os.Remove(broken), os.Remove(gate)) }) // before what is left is cleaned up with it
	script := filepath.Join(e.dir, "wrapped")
	e.g.Expect(os.WriteFile(script, fmt.Appendf(nil, `#!/bin/sh
for a; do
	[ "$a" = delete ] || continue
	[ ! -e %[1]s ] || { echo it does not die >&2; exit 1; }
	while [ -e %[2]s ]; do : >%[3]s; sleep 0.02; done
done
exec %[4]s "$@"
`, broken, gate, reached, runc), 0o700)).To(Succeed())
	config, err := os.ReadFile(e.config)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.config = writeConfig(e.t, fmt.Sprintf("runtime = %q\n%s", script, config))
	return broken, gate, reached
}

// halfCreate makes a creation fail after the runtime's part, for want of a stream, and
// returns the process that the runtime made.
func (e *e2e) halfCreate(id string) (pid int) {
	e.t.Helper()
	bundle, spec := e.bundle(id, "/bin/sleep", "1000")
	e.start(id, bundle, spec)
	opts, err := typeurl.MarshalAny(&runtimeoptions.Options{ConfigPath: e.config})
	e.g.Expect(err).NotTo(HaveOccurred())
	stdout := filepath.Join(e.dir, id+".out")
	e.g.Expect(os.WriteFile(stdout, nil, 0o600)).To(Succeed())
	_, err = e.client.Create(e.t.Context(), &taskapi.CreateTaskRequest{
		ID: id, Bundle: bundle, Options: protobuf.FromAny(opts), Stdout: stdout,
		Rootfs: []*types.Mount{pullMount(e.t, "r.example/app@sha256:"+digestHex)},
	})
	e.g.Expect(err).To(MatchError(ContainSubstring("pipe copy")))
	data, err := os.ReadFile(filepath.Join(bundle, pidFile))
	e.g.Expect(err).NotTo(HaveOccurred(), "the runtime's part succeeded")
	pid, err = strconv.Atoi(string(data))
	e.g.Expect(err).NotTo(HaveOccurred())
	return pid
}

// traces are what there is of a container: its process, its cgroups, the runtime's state.
func (e *e2e) traces(id string, pid int) []string {
	e.t.Helper()
	group := "husk-e2e-" + e.sandboxID[:8] + "/crio-" + id
	var found []string
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/" + group, "/sys/fs/cgroup/" + group,
		filepath.Join(e.dir, "runc", "default", id), filepath.Join(e.pod.Rootfs(), id),
	} {
		names, err := filepath.Glob(pattern)
		e.g.Expect(err).NotTo(HaveOccurred())
		found = append(found, names...)
	}
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	if _, err := os.Readlink(exe); err == nil { // one that is dead, and not reaped, has none
		found = append(found, exe)
	}
	return found
}

func TestHalfCreatedContainerIsGone(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	e.run(e.sandboxID, "/sleep", "1000")
	id := newID(t)
	pid := e.halfCreate(id)
	e.g.Expect(e.traces(id, pid)).To(BeEmpty())
	e.g.Expect(e.pod.List()).To(HaveLen(1), "the sandbox")
	_, err := e.client.Delete(t.Context(), &taskapi.DeleteRequest{ID: id}) // as CRI-O does
	e.g.Expect(err).NotTo(HaveOccurred())
	next := newID(t)
	e.run(next, "/bin/sleep", "1000") // the pod is as good as ever
	e.remove(next)
	e.remove(e.sandboxID)
	e.gone()
}

// A half-created container that its runtime does not delete at first is found by whoever
// deletes it later: by CRI-O's call, or by the keeper after the shim's death.
func TestHalfCreatedContainerIsFound(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(e *e2e){
		"by CRI-O":    func(*e2e) {},
		"by a keeper": func(e *e2e) { e.killShim() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newE2E(t)
			broken, _, _ := e.wrapRuntime()
			e.run(e.sandboxID, "/sleep", "1000")
			e.g.Expect(os.WriteFile(broken, nil, 0o600)).To(Succeed())
			id := newID(t)
			pid := e.halfCreate(id)
			e.g.Expect(e.traces(id, pid)).To(ContainElement(HavePrefix("/proc/")))
			_, err := e.client.Delete(t.Context(), &taskapi.DeleteRequest{ID: id})
			e.g.Expect(err).To(MatchError(ContainSubstring("it does not die")))
			e.g.Expect(e.pod.Get(id)).To(HaveField("ID", id))

			e.g.Expect(os.Remove(broken)).To(Succeed())
			before(e)
			_, err = e.client.Delete(t.Context(), &taskapi.DeleteRequest{ID: id})
			e.g.Expect(err).NotTo(HaveOccurred())
			e.g.Expect(e.traces(id, pid)).To(BeEmpty())
			e.remove(e.sandboxID)
			e.gone()
		})
	}
}

// A CRI-O that restarts while the keeper kills the containers of a dead shim is answered.
func TestNewConnectionWaitsForTheKeeper(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	_, gate, reached := e.wrapRuntime()
	id := e.runPod()
	e.g.Expect(os.WriteFile(gate, nil, 0o600)).To(Succeed())
	e.killShim()
	e.g.Eventually(reached, 10*time.Second).Should(BeAnExistingFile())
	e.connect()
	type answer struct {
		state *taskapi.StateResponse
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		state, err := e.client.State(context.WithoutCancel(t.Context()), &taskapi.StateRequest{ID: id})
		answered <- answer{state, err}
	}()
	e.g.Consistently(answered, "200ms").ShouldNot(Receive())
	e.g.Expect(os.Remove(gate)).To(Succeed())
	var got answer
	e.g.Eventually(answered, 10*time.Second).Should(Receive(&got))
	e.g.Expect(got.err).NotTo(HaveOccurred())
	e.g.Expect(got.state.Status).To(Equal(task.Status_STOPPED))
	e.g.Expect(got.state.ExitStatus).To(Equal(uint32(pod.KilledStatus)))
	e.remove(id)
	e.remove(e.sandboxID)
	e.gone()
}
