package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/mod/modfile"

	testnode "github.com/husk-cri/husk/test/node"
)

// TestDependenciesAreStock holds this module to the versions in CRI-O's own go.mod: a CRI-O built here is the one
// that its makers release.
func TestDependenciesAreStock(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}} {{.GoMod}}", crioModule).Output()
	g.Expect(err).NotTo(HaveOccurred())
	version, path, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	g.Expect(version).To(Equal("v1.34.0"))
	b, err := os.ReadFile(path)
	g.Expect(err).NotTo(HaveOccurred())
	stock, err := modfile.Parse(path, b, nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(stock.Replace).To(BeEmpty(), "a replacement would not reach this module")
	b, err = testnode.Files.ReadFile("go.mod")
	g.Expect(err).NotTo(HaveOccurred())
	own, err := modfile.Parse("go.mod", b, nil)
	g.Expect(err).NotTo(HaveOccurred())

	want := make(map[string]string, len(stock.Require))
	for _, r := range stock.Require {
		want[r.Mod.Path] = r.Mod.Version
	}
	for _, r := range own.Require {
		if v, ok := want[r.Mod.Path]; ok {
			g.Expect(r.Mod.Version).To(Equal(v), r.Mod.Path)
		}
	}
}

func TestBuildTakesWhatTheCacheHas(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	cache := t.TempDir()
	dir, err := Dir(cache)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Mkdir(dir, 0o755)).To(Succeed())

	var progress strings.Builder
	bins, err := Build(t.Context(), cache, &progress)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(bins).To(Equal(Binaries{
		CRIO: filepath.Join(dir, "crio"), Pinns: filepath.Join(dir, "pinns"), Pause: filepath.Join(dir, "pause"),
	}))
	g.Expect(progress.String()).To(BeEmpty())
}
