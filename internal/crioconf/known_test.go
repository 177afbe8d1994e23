package crioconf

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	graphdriver "github.com/containers/storage/drivers"
	_ "github.com/containers/storage/drivers/register"
	. "github.com/onsi/gomega"
)

// TestStorageDrivers asks containers/storage itself which drivers it was built with.
func TestStorageDrivers(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	root := t.TempDir()
	for _, name := range append(storageDrivers(), "btrfs", "devicemapper", "zfss") {
		g.Expect(os.Mkdir(filepath.Join(root, name), 0o700)).To(Succeed())
	}
	var known []string
	for name := range graphdriver.ScanPriorDrivers(root) {
		known = append(known, name)
	}
	g.Expect(storageDrivers()).To(ConsistOf(known))
}

// TestHandlerKeys reads the struct that CRI-O decodes a handler's table into.
func TestHandlerKeys(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	cache, err := exec.CommandContext(t.Context(), "go", "env", "GOMODCACHE").Output()
	g.Expect(err).NotTo(HaveOccurred())
	found, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(cache)), "github.com/cri-o/cri-o@v1.34.*/pkg/config/config.go"))
	g.Expect(err).NotTo(HaveOccurred())
	if len(found) == 0 {
		t.Skip("the source of CRI-O 1.34 is not in the module cache: make testnode fetches it")
	}
	source, err := os.ReadFile(found[0])
	g.Expect(err).NotTo(HaveOccurred())
	_, body, ok := strings.Cut(string(source), "type RuntimeHandler struct {\n")
	g.Expect(ok).To(BeTrue())
	body, _, _ = strings.Cut(body, "\n}\n")
	var keys []string
	for _, m := range regexp.MustCompile("`toml:\"([a-z_]+)").FindAllStringSubmatch(body, -1) {
		keys = append(keys, m[1])
	}
	g.Expect(handlerKeys()).To(ConsistOf(keys))
}
