package keys

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/keybroker"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestCommandEnvironment: the process's own environment may hold credentials.
func TestCommandEnvironment(t *testing.T) {
	g := NewWithT(t)
	t.Setenv("HUSK_TEST_SECRET", secretText)
	t.Setenv("LD_PRELOAD", "")
	seen := filepath.Join(t.TempDir(), "seen")
	l := newLayer(t, keybroker.New(t))
	ring := open(t, Config{ProvidersFile: commandProvider(t, `cat /proc/self/environ >"$0"; pwd >>"$0"`, seen)})
	key, err := ring.Unwrap(t.Context(), l.annotations)
	expectUnavailable(t, key, err)
	data, err := os.ReadFile(seen)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).To(ContainSubstring("PATH=/usr/local/sbin:"))
	g.Expect(string(data)).To(HaveSuffix("/\n"))
	g.Expect(string(data)).NotTo(ContainSubstring(secretText))
	g.Expect(string(data)).NotTo(ContainSubstring("LD_PRELOAD"))
}

// TestCommandOutput: neither stream can fill the memory or end up in an error.
func TestCommandOutput(t *testing.T) {
	t.Parallel()
	for script, why := range map[string]string{
		"yes " + secretText: "the reply has more than 65536 bytes",
		"yes " + secretText + " | head -c 20000000 >&2; exit 7": "the command failed: exit status 7",
		"kill -9 $$":         "the command failed: signal: killed",
		"echo " + secretText: "not of the key provider protocol",
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			l := newLayer(t, keybroker.New(t))
			key, err := open(t, Config{ProvidersFile: commandProvider(t, script)}).Unwrap(t.Context(), l.annotations)
			expectUnavailable(t, key, err)
			NewWithT(t).Expect(err.Error()).To(ContainSubstring(why))
		})
	}
	t.Run("no such command", func(t *testing.T) {
		t.Parallel()
		config := filepath.Join(t.TempDir(), "conf")
		NewWithT(t).Expect(os.WriteFile(config, []byte(`{"key-providers":{"attestation-agent":{"cmd":{"path":"/nonexistent/tool"}}}}`), 0o600)).To(Succeed())
		l := newLayer(t, keybroker.New(t))
		key, err := open(t, Config{ProvidersFile: config}).Unwrap(t.Context(), l.annotations)
		expectUnavailable(t, key, err)
		NewWithT(t).Expect(err.Error()).To(ContainSubstring("the command could not be run: no such file or directory"))
	})
}

// TestCommandLeavesNothing: what a command that hangs has started is killed with it.
func TestCommandLeavesNothing(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	l := newLayer(t, keybroker.New(t))
	config := commandProvider(t, `sleep 1000 & echo $! >"$0.tmp"; mv "$0.tmp" "$0"; wait`, pidFile)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	ring := open(t, Config{ProvidersFile: config})
	go func() {
		_, err := ring.Unwrap(ctx, l.annotations)
		ended <- err
	}()
	var pid []byte
	g.Eventually(func() (err error) {
		pid, err = os.ReadFile(pidFile)
		return err
	}, "30s").Should(Succeed())
	cancel()
	var err error
	g.Eventually(ended, "30s").Should(Receive(&err))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
	g.Eventually(func() string {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", strings.TrimSpace(string(pid))))
		if err != nil {
			return "gone"
		}
		if strings.Contains(string(stat), ") Z ") { // nobody has waited for it yet
			return "gone"
		}
		return string(stat)
	}, "30s").Should(Equal("gone"))
}
