package bundlegen

import (
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
)

func TestThermalPaths(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		has      bool
		possible string
		want     []string
	}{
		"a virtual machine": {false, "0-3\n", nil},
		"ranges":            {true, "0-1,4\n", []string{"cpu0", "cpu1", "cpu4"}},
		"no number":         {true, "0,x-2,3-y,,1\n", []string{"cpu0", "cpu1"}},
		"backwards":         {true, "0,3-1\n", []string{"cpu0"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			dir := t.TempDir()
			if tc.has {
				g.Expect(os.MkdirAll(filepath.Join(dir, "cpu0", "thermal_throttle"), 0o755)).To(Succeed())
			}
			g.Expect(os.WriteFile(filepath.Join(dir, "possible"), []byte(tc.possible), 0o644)).To(Succeed())
			var want []string
			for _, cpu := range tc.want {
				want = append(want, filepath.Join(dir, cpu, "thermal_throttle"))
			}
			g.Expect(thermalPaths(dir)).To(Equal(want))
		})
	}
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.MkdirAll(filepath.Join(dir, "cpu0", "thermal_throttle"), 0o755)).To(Succeed())
	g.Expect(thermalPaths(dir)).To(ContainElement(filepath.Join(dir, "cpu0", "thermal_throttle")), "no list of them")
	g.Expect(os.WriteFile(filepath.Join(dir, "possible"), []byte("0-999999999"), 0o644)).To(Succeed())
	g.Expect(thermalPaths(dir)).To(HaveLen(maxCPUNumber+1), "bounded")
}
