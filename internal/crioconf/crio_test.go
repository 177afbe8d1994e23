package crioconf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
)

// crioBinary returns the stock CRI-O that the test node was built with.
func crioBinary(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache directory:", err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "husk", "*", "crio"))
	if err != nil || len(found) == 0 {
		t.Skip("no CRI-O below " + cache + "/husk: run make testnode")
	}
	return found[0]
}

// TestMergeAgreesWithCRIO lets CRI-O itself merge the files and print the outcome, and
// reads that: it must be what reading the files gives.
func TestMergeAgreesWithCRIO(t *testing.T) {
	t.Parallel()
	crio := crioBinary(t)
	seeds, err := filepath.Glob("testdata/*.conf")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	NewWithT(t).Expect(len(seeds)).To(BeNumerically(">", 3))
	for _, first := range seeds {
		t.Run(filepath.Base(first), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			files := map[string]string{"d/00.conf": "[crio]\nroot = \"/r\"\nrunroot = \"/rr\"\nstorage_driver = \"vfs\"\nstorage_option = [\"x\", \"c\"]\n"}
			for _, seed := range seeds {
				data, err := os.ReadFile(seed)
				g.Expect(err).NotTo(HaveOccurred())
				name := "d/sub/" + filepath.Base(seed)
				if seed == first {
					name = "crio.conf"
				}
				files[name] = string(data)
			}
			dir := write(t, files)
			conf, dropIns := filepath.Join(dir, "crio.conf"), filepath.Join(dir, "d")
			ours, err := Load(conf, dropIns, Storage{})
			g.Expect(err).NotTo(HaveOccurred())

			cmd := exec.CommandContext(t.Context(), crio, "--config", conf, "--config-dir", dropIns, "config")
			cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
			printed, err := cmd.Output()
			g.Expect(err).NotTo(HaveOccurred())
			// Printed as a comment, as what has the default is. The deprecated plugin_dir is not printed.
			printed = bytes.Replace(printed, []byte("# cni_default_network = "), []byte("cni_default_network = "), 1)
			theirs, err := merge([]source{{"crio config", printed}}, Storage{})
			g.Expect(err).NotTo(HaveOccurred(), "%s", printed)

			for _, c := range []*Config{&ours, &theirs} {
				for name, h := range c.Handlers {
					h.PullImage, h.Type = false, typeName(h) // CRI-O does not print the one, nor tell "" from "oci"
					c.Handlers[name] = h
				}
				c.Image.PinnedImages = append([]string{}, c.Image.PinnedImages...) // an empty list is none
			}
			ours.Image.NamespacedAuthDir, ours.Image.ShortNameMode = theirs.Image.NamespacedAuthDir, theirs.Image.ShortNameMode // 1.34.0 has none
			ours.Files, ours.Origins, theirs.Files, theirs.Origins = nil, nil, nil, nil
			g.Expect(ours).To(Equal(theirs))
		})
	}
}
