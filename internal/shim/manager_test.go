package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/keeper"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestStartNeedsTheSandbox(t *testing.T) {
	g := NewWithT(t)
	t.Chdir(t.TempDir())
	const spec = `{"annotations":{"io.kubernetes.cri-o.SandboxID":"s1","io.kubernetes.cri-o.ContainerType":"container"}}`
	g.Expect(os.WriteFile(configFile, []byte(spec), 0o600)).To(Succeed())
	_, err := Manager{StateDir: t.TempDir()}.Start(inNamespace(t), "c1", startOpts())
	g.Expect(errdefs.Is(err, errdefs.Unavailable)).To(BeTrue(), "%v", err)
	g.Expect(os.WriteFile(configFile, []byte(strings.ReplaceAll(spec, `"s1"`, `"../../x"`)), 0o600)).To(Succeed())
	_, err = Manager{StateDir: t.TempDir()}.Start(inNamespace(t), "c1", startOpts())
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
}

// shimGone waits for the end of a shim that was killed. The pod may have a new keeper by
// then: that of any other pod, of any test, looks for such pods.
func (e *e2e) shimGone() {
	e.t.Helper()
	e.g.Eventually(func() []int { return e.processes("-id " + e.sandboxID) }).Should(BeEmpty())
}

func TestDeleteModeAfterEverythingWasKilled(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	e.killKeeper()
	e.killShim()
	e.shimGone()
	for _, container := range []string{id, e.sandboxID} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-namespace", "default", "-id", container, "delete")
		cmd.Dir = filepath.Join(e.dir, container)
		cmd.Env = append(os.Environ(), binaryEnv+"=1")
		out, err := cmd.CombinedOutput()
		e.g.Expect(err).NotTo(HaveOccurred(), "%s", out)
	}
	e.gone()
}

// Only one of them cleans up: a keeper whose pod is removed by another process would wait
// for its end for ever.
func TestDeleteModeLeavesThePodToANewKeeper(t *testing.T) {
	needRoot(t)
	g := NewWithT(t)
	p := mustPod(t, "", newID(t))
	bundle := t.TempDir()
	t.Chdir(bundle)
	spec := `{"annotations":{"io.kubernetes.cri-o.SandboxID":"` + p.ID() + `","io.kubernetes.cri-o.ContainerType":"container"}}`
	g.Expect(os.WriteFile(configFile, []byte(spec), 0o600)).To(Succeed())
	g.Expect(os.WriteFile("runtime", []byte("#!/bin/sh\necho $* >>"+bundle+"/calls\ncat "+bundle+"/gate\n"), 0o700)).To(Succeed())
	g.Expect(unix.Mkfifo("gate", 0o600)).To(Succeed())
	adoptAlone(t, p, pod.Record{ID: "c1", Bundle: bundle, Runtime: filepath.Join(bundle, "runtime"), RuntimeRoot: bundle})
	done := make(chan error, 1)
	go func() {
		status, err := Manager{}.Stop(inNamespace(t), "c1")
		if err == nil && status.ExitStatus != pod.KilledStatus {
			err = fmt.Errorf("exit status %d", status.ExitStatus)
		}
		done <- err
	}()
	g.Consistently(done, "200ms").ShouldNot(Receive())
	gate, err := os.OpenFile("gate", os.O_WRONLY, 0) // when the runtime is there
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(gate.Close()).To(Succeed())
	g.Eventually(done, 5*time.Second).Should(Receive(BeNil()))
	g.Expect(os.ReadFile("calls")).To(BeEquivalentTo("--root " + bundle + " delete --force c1\n"))
	g.Eventually(func() []string { return childrenCalled(t, keeper.Command) }, 5*time.Second).Should(BeEmpty())
	g.Expect(p.Dir()).NotTo(BeADirectory())
}
