package rig

import (
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
)

// TestStartUndoesItself gives Start a testnode that fails, before and after it has
// made a node: the error says why, the node is taken down, and no folder is left.
func TestStartUndoesItself(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]string{"before": "", "after": `echo {} >"$3/node.json"; `} {
		g := NewWithT(t)
		bin := t.TempDir()
		script := "#!/bin/sh\necho \"$@\" >>" + bin + "/calls\n[ $1 = up ] || exit 0\n" + made + "echo no bridge >&2; exit 1\n"
		g.Expect(os.WriteFile(filepath.Join(bin, "testnode"), []byte(script), 0o755)).To(Succeed())
		_, err := Start(t.Context(), Options{Bin: bin})
		g.Expect(err).To(MatchError(ContainSubstring("no bridge")), name)
		calls, err := os.ReadFile(filepath.Join(bin, "calls"))
		g.Expect(err).NotTo(HaveOccurred())
		if made == "" {
			g.Expect(string(calls)).NotTo(ContainSubstring("down"))
		} else {
			g.Expect(string(calls)).To(ContainSubstring("down"), "a node that was made is taken down")
		}
	}
}
