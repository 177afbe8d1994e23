package podrun

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
)

func TestAwaitReader(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "stdin")
	g.Expect(unix.Mkfifo(path, 0o600)).To(Succeed())
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	g.Expect(awaitReader(ended, path)).NotTo(Succeed(), "nobody reads")
	cat := exec.CommandContext(t.Context(), "cat", path)
	g.Expect(cat.Start()).To(Succeed())
	hold, err := holdOpen(path)
	for err != nil { // until cat waits for a writer
		hold, err = holdOpen(path)
	}
	g.Expect(awaitReader(t.Context(), path)).To(Succeed())
	g.Expect(hold.Close()).To(Succeed())
	g.Expect(cat.Wait()).To(Succeed())
}
