package crioconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

// write makes a configuration directory; files are written as given.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	g := NewWithT(t)
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		g.Expect(os.MkdirAll(filepath.Dir(p), 0o755)).To(Succeed())
		g.Expect(os.WriteFile(p, []byte(text), 0o600)).To(Succeed())
	}
	return dir
}

func TestLoadMergesAsCRIODoes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := write(t, map[string]string{
		"crio.conf": `
[crio]
root = "/r"
runroot = "/rr"
storage_driver = "overlay"
storage_option = ["a=1", "b=2"]
[crio.api]
listen = "/run/crio/crio-backend.sock"
[crio.runtime]
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_path = "/usr/bin/runc"
[crio.runtime.runtimes.husk]
runtime_path = "/usr/bin/containerd-shim-husk-v2"
runtime_type = "vm"
runtime_pull_image = true
runtime_config_path = "/etc/husk/shim.toml"
[crio.image]
global_auth_file = "/auth.json"
insecure_registries = ["127.0.0.1:5000"]
`,
		"d/10-a.conf": `
[crio]
root = ""
storage_option = ["c=3", "a=1"]
[crio.runtime.runtimes.kata]
runtime_path = "/usr/bin/containerd-shim-kata-v2"
runtime_type = "vm"
runtime_pull_image = true
`,
		"d/20-b.conf": `
[crio.runtime]
default_runtime = "kata"
[crio.runtime.runtimes.runc]
runtime_type = "oci"
`,
	})
	system := Storage{Root: "/system", RunRoot: "/system-run", ImageStore: "/images", Driver: "vfs", Options: []string{"s=0", "b=2"}}
	c, err := Load(filepath.Join(dir, "crio.conf"), filepath.Join(dir, "d"), system)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Storage).To(Equal(Storage{
		Root: "/r", RunRoot: "/rr", ImageStore: "/images", Driver: "overlay", Options: []string{"s=0", "b=2", "c=3", "a=1"},
	}))
	g.Expect(c.Listen).To(Equal("/run/crio/crio-backend.sock"))
	g.Expect(c.DefaultRuntime).To(Equal("kata"))
	g.Expect(c.Handlers["runc"]).To(Equal(Handler{Type: "oci"}), "a handler named again is replaced whole")
	g.Expect(c.GuestPullHandlers()).To(Equal([]string{"husk", "kata"}))
	g.Expect(c.Handlers["husk"].ResolvesNames()).To(BeTrue())
	g.Expect(c.Handlers["kata"].ResolvesNames()).To(BeFalse())
	g.Expect(c.Image.GlobalAuthFile).To(Equal("/auth.json"))
	g.Expect(c.Image.SignaturePolicyDir).To(Equal("/etc/crio/policies"))
	g.Expect(c.Image.ImageVolumes).To(Equal("mkdir"))
}

// A node whose only file is Husk's drop-in runs everything else by CRI-O's built-in
// handler, and keeps its storage where storage.conf says.
func TestLoadKnowsTheBuiltInRuntime(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nothing said":    "",
		"empty default":   "[crio.runtime]\ndefault_runtime = \"\"\n",
		"another handler": "[crio.runtime.runtimes.runc]\nruntime_path = \"/usr/bin/runc\"\n",
	} {
		g := NewWithT(t)
		dir := write(t, map[string]string{"crio.conf": text})
		c, err := Load(filepath.Join(dir, "crio.conf"), filepath.Join(dir, "none"), Storage{Root: "/r"})
		g.Expect(err).NotTo(HaveOccurred(), name)
		g.Expect(c.DefaultRuntime).To(Equal("crun"), name)
		g.Expect(c.Handlers).To(HaveKeyWithValue("crun", Handler{}), name)
		g.Expect(c.Storage.Root).To(Equal("/r"), name)
		g.Expect(c.Listen).To(Equal("/var/run/crio/crio.sock"), name)
	}
}

func TestHandlersInheritTheDefaultRuntime(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := write(t, map[string]string{"crio.conf": `
[crio.runtime]
default_runtime = "kata"
[crio.runtime.runtimes.kata]
runtime_path = "/usr/bin/containerd-shim-kata-v2"
runtime_type = "vm"
runtime_config_path = "/etc/kata.toml"
[crio.runtime.runtimes.guest]
inherit_default_runtime = true
runtime_pull_image = true
`})
	c, err := Load(filepath.Join(dir, "crio.conf"), filepath.Join(dir, "none"), Storage{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Handlers["guest"]).To(Equal(Handler{
		Path: "/usr/bin/containerd-shim-kata-v2", Type: "vm", ConfigPath: "/etc/kata.toml", PullImage: true,
	}))
	g.Expect(c.GuestPullHandlers()).To(Equal([]string{"guest"}), "the default itself does not pull in the guest")
}

func TestGuestPullNeedsTheVMType(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(Handler{PullImage: true, Type: "vm"}.GuestPull()).To(BeTrue())
	g.Expect(Handler{PullImage: true, Type: "oci"}.GuestPull()).To(BeFalse())
	g.Expect(Handler{Type: "vm"}.GuestPull()).To(BeFalse(), "plain Kata keeps sharing host images")
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a missing file":      {nil, "no such file"},
		"a file that is none": {map[string]string{"crio.conf": "[crio"}, "parse CRI-O configuration"},
		"a wrong type":        {map[string]string{"crio.conf": "[crio]\nroot = 1\n"}, "parse CRI-O configuration"},
		"a huge file":         {map[string]string{"crio.conf": strings.Repeat("#", maxFileBytes+1)}, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			dir := write(t, tc.files)
			_, err := Load(filepath.Join(dir, "crio.conf"), filepath.Join(dir, "none"), Storage{})
			g.Expect(err).To(MatchError(ContainSubstring(tc.want)))
		})
	}
}
