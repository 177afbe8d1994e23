package shim

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

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
