package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

func render(t *testing.T, l Loaded) string {
	t.Helper()
	g := NewWithT(t)
	g.Expect(l.Err()).NotTo(HaveOccurred())
	var out bytes.Buffer
	g.Expect(Render(&out, l, nil)).To(Succeed())
	return out.String()
}

func TestRenderIsReadBackAsTheSame(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nothing set": "",
		"everything": `
listen = "/run/with \"quotes\" and \\ and \u0007.sock"
backend = "unix:///run/b.sock"
handover_socket = "/run/h.sock"
crio_config = "/c"
crio_config_dir = "/d"
registries_conf = "/r"
registries_conf_dir = "/rd"
default_handler = "kata"
assume_handler = "kata"
max_pulls = 3
pull_timeout = "1h"
record_ttl = "720h"
metrics_listen = "[::1]:9091"
log_level = "debug"
log_format = "json"
[handlers.kata]
pin_digest = false
pull_in_sandbox = true
max_image_size = 2000000001
max_layers = 64
named_users = "refuse-at-create"
eager_pull = false
[handlers."a name.with dots"]
pin_digest = true
[handlers.empty]
`,
	} {
		g := NewWithT(t)
		l := Read(write(t, text))
		out := render(t, l)
		again, err := load(t, out)
		g.Expect(err).NotTo(HaveOccurred(), "%s:\n%s", name, out)
		g.Expect(again).To(Equal(l.Config), "%s:\n%s", name, out)
		for _, f := range Fields() {
			g.Expect(out).To(ContainSubstring(sentence(f.Doc)+".\n"), "%s: the comment of %s", name, f.Key)
			key := f.Key[strings.LastIndex(f.Key, ".")+1:]
			g.Expect(out).To(MatchRegexp(`(?m)^#?`+key+` = `), "%s: %s", name, f.Key)
		}
	}
}

func TestRenderSaysWhereAValueComesFrom(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := write(t, "log_level = \"warn\"\n", "50-site.toml", "max_pulls = 4\nbackend = \"\"\n[handlers.kata]\nmax_layers = 9\n")
	out := render(t, Read(path))
	lines := map[string]string{} // key -> the comment above it
	var last string
	for line := range strings.Lines(out) {
		if key, _, ok := strings.Cut(strings.TrimPrefix(line, "#"), " = "); ok {
			lines[key] = last
		}
		last = line
	}
	site := filepath.Join(path+".d", "50-site.toml")
	g.Expect(lines["listen"]).To(HaveSuffix("From: default.\n"))
	g.Expect(lines["listen"]).To(ContainSubstring("at restart"))
	g.Expect(lines["log_level"]).To(HaveSuffix("From: " + path + ".\n"))
	g.Expect(lines["max_pulls"]).To(HaveSuffix("From: " + site + ".\n"))
	g.Expect(lines["backend"]).To(HaveSuffix("From: "+site+".\n"), "set to its zero")
	g.Expect(lines["max_layers"]).To(HaveSuffix("From: " + site + ".\n"))
	g.Expect(lines["record_ttl"]).NotTo(ContainSubstring("From"))
	g.Expect(out).To(And(ContainSubstring("# Read: "+path+"\n"), ContainSubstring("# Read: "+site+"\n")))
}

func TestRenderSaysWhatCRIOGives(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	inForce := map[string]string{"backend": "/run/b.sock", "default_handler": "crun\nmax_pulls = 99"}
	for text, shown := range map[string]OmegaMatcher{
		"":                              ContainSubstring("\n# In effect: /run/b.sock.\n#backend = "),
		"backend = '/run/other.sock'\n": Not(ContainSubstring("/run/b.sock")),
	} {
		var out bytes.Buffer
		g.Expect(Render(&out, Read(write(t, text)), inForce)).To(Succeed())
		g.Expect(out.String()).To(shown)
		again, err := load(t, out.String())
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(again.MaxPulls).To(Equal(16), "it is in a comment")
	}
}

// The name of a file cannot smuggle a setting out of the comment it is printed in.
func TestRenderKeepsNamesInComments(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "a\nmax_pulls = 99\n.toml")
	g.Expect(os.WriteFile(path, []byte("log_level = \"warn\""), 0o600)).To(Succeed())
	again, err := load(t, render(t, Read(path)))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(again.MaxPulls).To(Equal(16))
}

func TestRenderNamesTheEnvironment(t *testing.T) {
	t.Setenv("CONTAINER_REGISTRIES_CONF", "/from/the/environment")
	g := NewWithT(t)
	l := Read(write(t, ""))
	g.Expect(l.Config.RegistriesConf).To(Equal("/from/the/environment"))
	g.Expect(render(t, l)).To(ContainSubstring("From: the environment.\nregistries_conf = \"/from/the/environment\"\n"))
}
