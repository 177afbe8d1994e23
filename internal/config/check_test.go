package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/crioconf"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	crio := crioconf.Config{
		Listen: "/run/crio/backend.sock", Files: []string{"/etc/crio/crio.conf"},
		Origins: crioconf.Origins{"crio.api.listen": {"/etc/crio/crio.conf.d/50-husk.conf"}},
		Handlers: map[string]crioconf.Handler{
			"husk": {Path: "/opt/containerd-shim-husk-v2", Type: "vm", PullImage: true}, "runc": {},
			"other": {Path: "/opt/containerd-shim-other-v2", Type: "vm", PullImage: true},
			"kata":  {Path: "/opt/containerd-shim-kata-qemu-v2", Type: "vm", PullImage: true},
		},
	}
	for name, c := range map[string]struct {
		text  string
		file  string // ends with; "" is no problem
		key   string
		says  string // what is wrong and the remedy
		fatal bool
	}{
		"nothing wrong":             {"listen = '/run/crio/crio.sock'\ndefault_handler = 'husk'\n[handlers.husk]\nmax_layers = 1\n", "", "", "", false},
		"in front of itself":        {"listen = '/run/crio/backend.sock'", "50-husk.conf", "crio.api.listen", "both listen", true},
		"in front of itself by key": {"listen = '/run/x.sock'\nbackend = '/run/../run//x.sock'", "husk.toml", "backend", "remove backend: CRI-O listens on /run/crio/backend.sock", true},
		"by key, and CRI-O too":     {"listen = '/run/crio/backend.sock'\nbackend = '/run/crio/backend.sock'", "husk.toml", "backend", "name CRI-O's socket", true},
		"no such default":           {"default_handler = 'hsuk'", "husk.toml", "default_handler", "default_handler: \"hsuk\" is no", true},
		"no such assumption":        {"assume_handler = 'hsuk'", "husk.toml", "assume_handler", "husk, kata, other, runc", true},
		"no such handler":           {"[handlers.hsuk]\nmax_layers = 1", "husk.toml", "handlers.hsuk", "no runtime handler", false},
		"a handler of the host's":   {"[handlers.runc]\nmax_layers = 1", "husk.toml", "handlers.runc", "no effect", false},
		"settings of husk's":        {"[handlers.husk]\nnamed_users = 'sandbox'\neager_pull = true\n[handlers.other]\neager_pull = false", "", "", "", false},
		"names to a foreign shim":   {"[handlers.other]\nnamed_users = 'sandbox'", "husk.toml", "handlers.other.named_users", "/opt/containerd-shim-other-v2 to look names up: one that does not runs such a container as nobody (65534)", false},
		"names to Kata":             {"[handlers.kata]\nnamed_users = 'sandbox'", "husk.toml", "handlers.kata.named_users", "Kata takes ids as they are", true},
		"names refused":             {"[handlers.kata]\nnamed_users = 'refuse-at-create'\n[handlers.other]\nnamed_users = 'refuse'", "", "", "", false},
		"eager, and cannot":         {"[handlers.kata]\neager_pull = true", "husk.toml", "handlers.kata.eager_pull", "has no effect: /opt/containerd-shim-kata-qemu-v2", false},
		"eager, of the host's":      {"[handlers.runc]\neager_pull = true", "husk.toml", "handlers.runc", "no effect", false},
		"handover on listen":        {"listen = '/run/a.sock'\nhandover_socket = '/run/a.sock'", "husk.toml", "handover_socket", "socket of listen", true},
		"metrics on listen":         {"listen = '/run/a.sock'\nmetrics_listen = 'unix:///run/a.sock'", "husk.toml", "metrics_listen", "socket of listen", true},
		"a path too long":           {"listen = '/" + strings.Repeat("a", 107) + "'", "husk.toml", "listen", "at most 107 bytes", true},
		"no such registries.conf":   {"registries_conf = '/does/not/exist'", "husk.toml", "registries_conf", "no such file", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			l := Read(write(t, c.text))
			g.Expect(l.Err()).NotTo(HaveOccurred())
			l.Config.RegistriesConfDir = "" // the machine's own, where the environment has it
			problems := Check(l, crio)
			if c.file == "" {
				g.Expect(problems).To(BeEmpty())
				return
			}
			g.Expect(problems).To(HaveLen(1), "%v", problems)
			g.Expect(problems[0].File).To(HaveSuffix(c.file))
			g.Expect(problems[0].Key).To(Equal(c.key))
			g.Expect(problems[0].Error()).To(ContainSubstring(c.says))
			g.Expect(problems[0].Remedy).NotTo(BeEmpty())
			g.Expect(problems[0].Fatal).To(Equal(c.fatal))
		})
	}
}

func TestSamePath(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.Mkdir(filepath.Join(dir, "run"), 0o700)).To(Succeed())
	g.Expect(os.Symlink("run", filepath.Join(dir, "var-run"))).To(Succeed())
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"run/crio.sock", "run/backend.sock", false},
		{"run/crio.sock", "run/../run//crio.sock", true},
		{"var-run/crio.sock", "run/crio.sock", true},
		{"var-run/crio/crio.sock", "run/crio/crio.sock", true}, // the directory is yet to be made
		{"var-run/crio/crio.sock", "run/husk/crio.sock", false},
	} {
		g.Expect(SamePath(filepath.Join(dir, c.a), dir+"/"+c.b)).To(Equal(c.same), "%s and %s", c.a, c.b)
	}
}
