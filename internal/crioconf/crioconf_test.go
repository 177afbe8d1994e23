package crioconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	g.Expect(c.Handlers["husk"].PullsLayers()).To(BeTrue())
	g.Expect(c.Handlers["kata"].PullsLayers()).To(BeFalse())
	full := c.Handlers["husk"]
	full.PullImage = false
	g.Expect(full.PullsLayers()).To(BeFalse(), "CRI-O has pulled them")
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

func TestLoadReadsHowCRIOPulls(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := write(t, map[string]string{
		"empty.conf": "",
		"crio.conf": `
[crio]
internal_wipe = false
internal_repair = false
[crio.api]
grpc_max_send_msg_size = 1000
grpc_max_recv_msg_size = -1
[crio.runtime]
cgroup_manager = "cgroupfs"
separate_pull_cgroup = "pod"
[crio.image]
pause_image = "registry.local/pause:1"
pinned_images = ["a", "b*"]
insecure_registries = ["x", "y"]
pull_progress_timeout = "0s"
namespaced_auth_dir = "/auth"
short_name_mode = "enforcing"
[crio.tracing]
enable_tracing = true
tracing_endpoint = "10.0.0.1:4317"
tracing_sampling_rate_per_million = 1000000
`,
		"d/1.conf": "[crio.image]\npull_progress_timeout = \"30s\"\npinned_images = [\"c\"]\ninsecure_registries = []\n",
	})
	c, err := Load(filepath.Join(dir, "empty.conf"), filepath.Join(dir, "none"), Storage{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.GRPC).To(Equal(GRPC{MaxSendBytes: 80 << 20, MaxRecvBytes: 80 << 20}))
	g.Expect(c.Tracing).To(Equal(Tracing{Endpoint: "127.0.0.1:4317"}))
	g.Expect(c.CgroupManager).To(Equal("systemd"))
	g.Expect([]bool{c.InternalWipe, c.InternalRepair}).To(Equal([]bool{true, true}))
	g.Expect(c.Image).To(Equal(Image{
		SignaturePolicyDir: "/etc/crio/policies", ImageVolumes: "mkdir",
		NamespacedAuthDir: "/etc/crio/auth", PauseImage: "registry.k8s.io/pause:3.10",
	}))

	c, err = Load(filepath.Join(dir, "crio.conf"), filepath.Join(dir, "d"), Storage{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.GRPC).To(Equal(GRPC{MaxSendBytes: 1000, MaxRecvBytes: 80 << 20}), "what is not positive is the default")
	g.Expect(c.Tracing).To(Equal(Tracing{Enabled: true, Endpoint: "10.0.0.1:4317", SamplingPerMillion: 1000000}))
	g.Expect(c.CgroupManager).To(Equal("cgroupfs"))
	g.Expect([]bool{c.InternalWipe, c.InternalRepair}).To(Equal([]bool{false, false}))
	g.Expect(c.Image).To(Equal(Image{
		SignaturePolicyDir: "/etc/crio/policies", ImageVolumes: "mkdir", NamespacedAuthDir: "/auth",
		PauseImage: "registry.local/pause:1", PinnedImages: []string{"c"}, InsecureRegistries: []string{},
		PullProgressTimeout: 30 * time.Second, SeparatePullCgroup: "pod", ShortNameMode: "enforcing",
	}), "a list is replaced")
	main, dropIn := filepath.Join(dir, "crio.conf"), filepath.Join(dir, "d/1.conf")
	g.Expect(c.Files).To(Equal([]string{main, dropIn}))
	g.Expect(c.Origins).To(HaveKeyWithValue("crio.image.pull_progress_timeout", []string{main, dropIn}))
	g.Expect(c.Where("crio.image.pull_progress_timeout")).To(Equal(dropIn))
	g.Expect(c.Where("crio.image.pause_image")).To(Equal(main))
	g.Expect(c.Where("crio.root")).To(Equal(main), "where to write what no file says")
	g.Expect(Config{}.Where("crio.root")).To(Equal(DefaultFile))
}

func TestLoadReadsTheNetwork(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := write(t, map[string]string{
		"empty.conf": "",
		"crio.conf":  "[crio.network]\nnetwork_dir = \"/net.d\"\nplugin_dirs = [\"/a\", \"/b\"]\nplugin_dir = \"/old\"\ncni_default_network = \"pods\"\n",
		"d/1.conf":   "[crio.network]\nplugin_dirs = [\"/c\"]\n",
	})
	for name, c := range map[string]struct {
		conf, dropIns string
		want          Network
	}{
		"nothing said":     {"empty.conf", "none", Network{Dir: "/etc/cni/net.d/", PluginDirs: []string{"/opt/cni/bin/"}}},
		"all said":         {"crio.conf", "none", Network{Dir: "/net.d", PluginDirs: []string{"/a", "/b", "/old"}, DefaultNetwork: "pods"}},
		"a list replaced":  {"crio.conf", "d", Network{Dir: "/net.d", PluginDirs: []string{"/c", "/old"}, DefaultNetwork: "pods"}},
		"over the default": {"empty.conf", "d", Network{Dir: "/etc/cni/net.d/", PluginDirs: []string{"/c"}}},
	} {
		loaded, err := Load(filepath.Join(dir, c.conf), filepath.Join(dir, c.dropIns), Storage{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(loaded.Network).To(Equal(c.want), name)
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	old := Config{Listen: "/a", Storage: Storage{Options: []string{"x"}}}
	next := old
	next.Handlers = map[string]Handler{"kata": {}}
	next.Image.GlobalAuthFile = "/auth.json"
	g.Expect(Diff(old, next)).To(BeEmpty(), "these change at once")
	next.Listen, next.Storage.Options, next.Tracing.Enabled = "/b", []string{"y"}, true
	g.Expect(Diff(old, next)).To(Equal([]string{"crio.api.listen", "crio.storage_option", "crio.tracing.enable_tracing"}))
	all := Config{
		Listen: "x", Storage: Storage{Root: "x", RunRoot: "x", ImageStore: "x", Driver: "x", Options: []string{"x"}},
		GRPC: GRPC{1, 1}, Tracing: Tracing{true, "x", 1},
	}
	g.Expect(Diff(Config{}, all)).To(HaveLen(11))
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
		"a file that is none": {map[string]string{"crio.conf": "[crio"}, "read CRI-O configuration"},
		"a wrong type":        {map[string]string{"crio.conf": "[crio]\nroot = 1\n"}, "read CRI-O configuration"},
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

func TestReadDir(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := write(t, map[string]string{"b.json": "", "a.json": "", ".c.json": "", "d.json~": ""})
	g.Expect(ReadDir(dir, ".json", 4)).To(Equal([]string{filepath.Join(dir, "a.json"), filepath.Join(dir, "b.json")}))
	_, err := ReadDir(dir, ".json", 3) // a policy that is not read must not be a policy that is not there
	g.Expect(err).To(MatchError(ContainSubstring("more than 3 files")))
	g.Expect(ReadDir(filepath.Join(dir, "none"), ".json", 1)).To(BeEmpty())
	_, err = ReadDir(filepath.Join(dir, "a.json"), ".json", 1)
	g.Expect(err).To(HaveOccurred())
}
