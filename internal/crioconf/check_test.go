package crioconf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

// node is a configuration that is right, in a directory of its own. DIR stands for it.
func node(t *testing.T, conf string, dropIns map[string]string) (string, Config) {
	t.Helper()
	g := NewWithT(t)
	dir := write(t, map[string]string{
		"policy.json": `{"default":[{"type":"insecureAcceptAnything"}]}`, "auth.json": `{"auths":{}}`, "bad.json": "{secret",
		"containerd-shim-husk-v2": "#!/bin/sh\n", "shim": "", "shim.toml": "", "policies/team.json": `{"default":[{"type":"reject"}]}`,
		"policies/README": "not a policy", "worse/team.json": `{"default":[{"type":"acceptAll"}]}`,
	})
	g.Expect(os.Chmod(filepath.Join(dir, "containerd-shim-husk-v2"), 0o700)).To(Succeed())
	fill := func(s string) string { return strings.ReplaceAll(s, "DIR", dir) }
	g.Expect(os.WriteFile(filepath.Join(dir, "crio.conf"), []byte(fill(conf)), 0o600)).To(Succeed())
	g.Expect(os.Mkdir(filepath.Join(dir, "d"), 0o700)).To(Succeed())
	for name, text := range dropIns {
		g.Expect(os.WriteFile(filepath.Join(dir, "d", name), []byte(fill(text)), 0o600)).To(Succeed())
	}
	c, err := Load(filepath.Join(dir, "crio.conf"), filepath.Join(dir, "d"), Storage{Root: "/r"})
	g.Expect(err).NotTo(HaveOccurred())
	return dir, c
}

const rightConf = `
[crio.runtime.runtimes.husk]
runtime_path = "DIR/containerd-shim-husk-v2"
runtime_type = "vm"
runtime_pull_image = true
runtime_config_path = "DIR/shim.toml"
[crio.image]
signature_policy = "DIR/policy.json"
signature_policy_dir = "DIR/policies"
global_auth_file = "DIR/auth.json"
`

func TestCheckFindsNothingInWhatIsRight(t *testing.T) {
	t.Parallel()
	_, c := node(t, rightConf, map[string]string{"10.conf": `
[crio.runtime]
separate_pull_cgroup = "system.slice"
[crio.tracing]
enable_tracing = true
[crio.runtime.runtimes.runc]
runtime_path = "/not/there/and/not/ours"
`, "20.conf": "[crio.runtime.runtimes.runc]\nruntime_path = \"/named/again/whole\"\n"})
	NewWithT(t).Expect(Check(c)).To(BeEmpty())
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change [2]string // in rightConf
		dropIn string    // or in a drop-in
		key    string
		says   string
	}{
		"guest pull without vm":    {[2]string{`runtime_type = "vm"` + "\n", ""}, "", "", ""}, // three problems: see below
		"no shim":                  {[2]string{"DIR/containerd-shim-husk-v2", "DIR/containerd-shim-gone-v2"}, "", "crio.runtime.runtimes.husk.runtime_path", "no such file"},
		"a shim by another name":   {[2]string{"DIR/containerd-shim-husk-v2", "/bin/true"}, "", "crio.runtime.runtimes.husk.runtime_path", "not named"},
		"no shim named":            {[2]string{`runtime_path = "DIR/containerd-shim-husk-v2"`, ""}, "", "crio.runtime.runtimes.husk.runtime_path", "missing"},
		"no shim configuration":    {[2]string{"DIR/shim.toml", "DIR/gone.toml"}, "", "crio.runtime.runtimes.husk.runtime_config_path", "no such file"},
		"shim file is a directory": {[2]string{"DIR/shim.toml", "DIR/policies"}, "", "crio.runtime.runtimes.husk.runtime_config_path", "not a regular file"},
		"config for oci":           {[2]string{}, "[crio.runtime.runtimes.runc]\nruntime_config_path = \"DIR/shim.toml\"", "crio.runtime.runtimes.runc.runtime_config_path", "type \"oci\""},
		"unknown default":          {[2]string{}, "[crio.runtime]\ndefault_runtime = \"youki\"", "crio.runtime.default_runtime", `"youki" is no handler`},
		"no guest pull at all":     {[2]string{"runtime_pull_image = true", ""}, "", "crio.runtime.runtimes", "husk only forwards"},
		"no policy":                {[2]string{"DIR/policy.json", "DIR/gone.json"}, "", "crio.image.signature_policy", "no such file"},
		"policy is no JSON":        {[2]string{"DIR/policy.json", "DIR/bad.json"}, "", "crio.image.signature_policy", "bad.json"},
		"policy of a namespace":    {[2]string{"DIR/policies", "DIR/worse"}, "", "crio.image.signature_policy_dir", "team.json"},
		"policy dir is a file":     {[2]string{"DIR/policies", "DIR/shim"}, "", "crio.image.signature_policy_dir", "shim"},
		"policy dir is relative":   {[2]string{"DIR/policies", "policies"}, "", "crio.image.signature_policy_dir", "not absolute"},
		"no auth file":             {[2]string{"DIR/auth.json", "DIR/gone.json"}, "", "crio.image.global_auth_file", "no such file"},
		"auth file is no JSON":     {[2]string{"DIR/auth.json", "DIR/bad.json"}, "", "crio.image.global_auth_file", "no JSON"},
		"auth dir is relative":     {[2]string{}, "[crio.image]\nnamespaced_auth_dir = \"auth\"", "crio.image.namespaced_auth_dir", "not absolute"},
		"image volumes":            {[2]string{}, "[crio.image]\nimage_volumes = \"copy\"", "crio.image.image_volumes", `"copy"`},
		"short names":              {[2]string{}, "[crio.image]\nshort_name_mode = \"permissive\"", "crio.image.short_name_mode", `"permissive"`},
		"negative timeout":         {[2]string{}, "[crio.image]\npull_progress_timeout = \"-1s\"", "crio.image.pull_progress_timeout", "negative"},
		"cgroup manager":           {[2]string{}, "[crio.runtime]\ncgroup_manager = \"none\"", "crio.runtime.cgroup_manager", `"none"`},
		"pull cgroup on cgroupfs":  {[2]string{}, "[crio.runtime]\ncgroup_manager = \"cgroupfs\"\nseparate_pull_cgroup = \"pod\"", "crio.runtime.separate_pull_cgroup", "systemd"},
		"pull cgroup is no slice":  {[2]string{}, "[crio.runtime]\nseparate_pull_cgroup = \"/pulls\"", "crio.runtime.separate_pull_cgroup", `"/pulls"`},
		"network dir is a file":    {[2]string{}, "[crio.network]\nnetwork_dir = \"DIR/shim\"", "crio.network.network_dir", "shim is none"},
		"network dir in a file":    {[2]string{}, "[crio.network]\nnetwork_dir = \"DIR/shim/net.d\"", "crio.network.network_dir", "not a directory"},
		"no network dir":           {[2]string{}, "[crio.network]\nnetwork_dir = \"\"", "crio.network.network_dir", "empty"},
		"network dir is relative":  {[2]string{}, "[crio.network]\nnetwork_dir = \"net.d\"", "crio.network.network_dir", "not absolute"},
		"plugin dir is a file":     {[2]string{}, "[crio.network]\nplugin_dirs = [\"DIR/policies\", \"DIR/shim\"]", "crio.network.plugin_dirs", "shim is none"},
		"plugin dir has no name":   {[2]string{}, "[crio.network]\nplugin_dirs = [\"\"]", "crio.network.plugin_dirs", "empty name"},
		"old plugin dir is a file": {[2]string{}, "[crio.network]\nplugin_dir = \"DIR/shim\"", "crio.network.plugin_dir", "shim is none"},
		"no collector":             {[2]string{}, "[crio.tracing]\nenable_tracing = true\ntracing_endpoint = \"\"", "crio.tracing.tracing_endpoint", "empty"},
		"sampling":                 {[2]string{}, "[crio.tracing]\nenable_tracing = true\ntracing_sampling_rate_per_million = 2000000", "crio.tracing.tracing_sampling_rate_per_million", "2000000"},
		"no shim in the drop-in":   {[2]string{}, "[crio.runtime.runtimes.kata]\nruntime_type = \"vm\"\nruntime_pull_image = true", "crio.runtime.runtimes.kata.runtime_path", "missing"},
		"named again":              {[2]string{}, "[crio.runtime.runtimes.husk]\nruntime_path = \"DIR/containerd-shim-husk-v2\"\nruntime_type = \"vm\"\nruntime_pull_image = true", "crio.runtime.runtimes.husk", "loses runtime_config_path of "},
		"misspelt in a handler":    {[2]string{}, "[crio.runtime.runtimes.runc]\nruntime_path = \"/runc\"\nruntime_pullimage = true", "crio.runtime.runtimes.runc.runtime_pullimage", "no such key"},
		"no such storage driver":   {[2]string{}, "[crio]\nstorage_driver = \"zfss\"", "crio.storage_driver", `"zfss" is no storage driver`},
		"storage driver not built": {[2]string{}, "[crio]\nstorage_driver = \"btrfs\"", "crio.storage_driver", "no storage driver that husk can use"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			conf, file, dropIns := rightConf, "crio.conf", map[string]string{}
			if c.change[0] != "" {
				g.Expect(conf).To(ContainSubstring(c.change[0]))
				conf = strings.Replace(conf, c.change[0], c.change[1], 1)
			}
			if c.dropIn != "" {
				dropIns["50.conf"], file = c.dropIn, "d/50.conf"
			}
			dir, config := node(t, conf, dropIns)
			problems := Check(config)
			if c.key == "" {
				g.Expect(problems).To(ConsistOf(
					HaveField("Key", "crio.runtime.runtimes.husk.runtime_pull_image"),
					HaveField("Key", "crio.runtime.runtimes.husk.runtime_config_path"),
					HaveField("Key", "crio.runtime.runtimes"),
				))
				return
			}
			g.Expect(problems).To(HaveLen(1), "%v", problems)
			p := problems[0]
			g.Expect([]string{p.File, p.Key}).To(Equal([]string{filepath.Join(dir, file), c.key}))
			g.Expect(p.What).To(ContainSubstring(c.says))
			g.Expect(p.Remedy).NotTo(BeEmpty())
			g.Expect(p.Error()).To(Equal(p.File + ": " + p.Key + ": " + p.What + ": " + p.Remedy))
			g.Expect(p.Error()).NotTo(ContainSubstring("secret"), "what is in a file is not shown")
		})
	}
}

// TestLostKeysAreOneProblem: a handler that is named again loses all keys for one reason.
func TestLostKeysAreOneProblem(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, c := node(t, rightConf, map[string]string{
		"10.conf": "[crio.runtime.runtimes.runc]\nruntime_path = \"/runc\"\nruntime_root = \"/r\"\nmonitor_path = \"/m\"\n",
		"20.conf": "[crio.runtime.runtimes.runc]\nruntime_path = \"/runc\"\n",
	})
	g.Expect(Check(c)).To(ConsistOf(And(
		HaveField("File", filepath.Join(dir, "d/20.conf")), HaveField("Key", "crio.runtime.runtimes.runc"),
		HaveField("What", "is named again here, and loses monitor_path, runtime_root of "+filepath.Join(dir, "d/10.conf")),
	)))
}

// TestKnownKeysOfHandlers: tables within a handler, another case, and a handler whose name
// has a dot are no misspelt keys.
func TestKnownKeysOfHandlers(t *testing.T) {
	t.Parallel()
	_, c := node(t, rightConf, map[string]string{"10.conf": `
[crio.runtime.runtimes.runc]
Runtime_Path = "/runc"
[crio.runtime.runtimes.runc.default_annotations]
"any.thing" = "goes"
[crio.runtime.runtimes."runc.debug"]
runtime_path = "/runc"
`})
	NewWithT(t).Expect(Check(c)).To(BeEmpty())
}

// TestNoCRIO: a machine without CRI-O has one problem, and that is it.
func TestNoCRIO(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := merge(nil, Storage{Root: "/r"})
	g.Expect(err).NotTo(HaveOccurred())
	problems := Check(c)
	g.Expect(problems).To(HaveLen(1))
	g.Expect(problems[0].Error()).To(HavePrefix(DefaultFile + ": there is no CRI-O configuration"))
	g.Expect(problems[0].Error()).NotTo(ContainSubstring("handler"))
}

func TestShimThatCannotRun(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, c := node(t, rightConf, nil)
	shim := filepath.Join(dir, "containerd-shim-husk-v2")
	g.Expect(os.Chmod(shim, 0o600)).To(Succeed())
	g.Expect(Check(c)).To(ConsistOf(HaveField("What", ContainSubstring("no executable file"))))
}

func TestSystemPolicyIsCheckedWhenNoneIsNamed(t *testing.T) {
	t.Setenv("HOME", t.TempDir()) // where containers/image looks first
	g := NewWithT(t)
	home := filepath.Join(os.Getenv("HOME"), ".config/containers")
	g.Expect(os.MkdirAll(home, 0o700)).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(home, "policy.json"), []byte("{"), 0o600)).To(Succeed())
	_, c := node(t, strings.Replace(rightConf, `signature_policy = "DIR/policy.json"`, "", 1), nil)
	g.Expect(Check(c)).To(ConsistOf(And(HaveField("Key", "crio.image.signature_policy"), HaveField("What", HavePrefix("not set")))))
}

func TestProblemsOfFilesNameThem(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"[crio":                                   {"", "line 1"},
		"[crio]\nroot = 1\n":                      {"crio.root", "incompatible types"},
		"[crio]\nroot = '/a'\nroot = '/b'\n":      {"crio.root", "already been defined"},
		"[crio.image]\npull_progress_timeout='x'": {"crio.image.pull_progress_timeout", "x"},
	} {
		g := NewWithT(t)
		dir := write(t, map[string]string{"crio.conf": "", "d/50.conf": text})
		_, err := Load(filepath.Join(dir, "crio.conf"), filepath.Join(dir, "d"), Storage{})
		var p Problem
		g.Expect(errors.As(err, &p)).To(BeTrue(), "%v", err)
		g.Expect([]string{p.File, p.Key}).To(Equal([]string{filepath.Join(dir, "d/50.conf"), want[0]}))
		g.Expect(p.What).To(ContainSubstring(want[1]))
		g.Expect(p.Error()).NotTo(ContainSubstring(".:"))
		g.Expect(p.Error()).NotTo(ContainAny("\x00\n\x1b"), "a terminal would obey it")
	}
}

// ContainAny matches a string with one of the characters.
func ContainAny(chars string) OmegaMatcher {
	return WithTransform(func(s string) bool { return strings.ContainsAny(s, chars) }, BeTrue())
}
