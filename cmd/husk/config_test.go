package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// rightPlace is a [place] of which husk config --check finds nothing to say.
func rightPlace(t *testing.T) place {
	t.Helper()
	g := NewWithT(t)
	p := newPlace(t)
	shim := p.write(t, "containerd-shim-husk-v2", "#!/bin/sh\n")
	g.Expect(os.Chmod(shim, 0o700)).To(Succeed())
	g.Expect(os.Mkdir(filepath.Join(p.dir, "none"), 0o700)).To(Succeed())
	p.edit(t, "crio.conf", "/usr/local/bin/containerd-shim-husk-v2", shim)
	return p
}

// edit replaces a piece of a file.
func (p place) edit(t *testing.T, name, from, to string) {
	t.Helper()
	g := NewWithT(t)
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).To(ContainSubstring(from))
	p.write(t, name, strings.Replace(string(data), from, to, 1))
}

func TestConfig(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	dropIns := p.husk + config.DropInSuffix
	g.Expect(os.Mkdir(dropIns, 0o700)).To(Succeed())
	p.write(t, filepath.Base(dropIns)+"/50-site.toml", "max_pulls = 3\n[handlers.husk]\nmax_image_size = \"2GiB\"\n")

	out, err := p.run(t, "", "config")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(ContainSubstring("From: " + filepath.Join(dropIns, "50-site.toml") + ".\nmax_pulls = 3\n"))
	g.Expect(out).To(ContainSubstring("# In effect: " + p.dir + "/backend.sock.\n#backend = "))
	g.Expect(out).To(ContainSubstring("# In effect: crun.\n#default_handler = "))
	want, err := config.Load(p.husk)
	g.Expect(err).NotTo(HaveOccurred())
	have, err := config.Load(p.write(t, "printed.toml", out))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(have).To(Equal(want), "what it prints is the same configuration")

	out, err = p.run(t, "", "config", "--format", "json")
	g.Expect(err).NotTo(HaveOccurred())
	var view map[string]any
	g.Expect(json.Unmarshal([]byte(out), &view)).To(Succeed())
	g.Expect(view).To(HaveKeyWithValue("max_pulls", 3.0))
	g.Expect(view).To(HaveKeyWithValue("pull_timeout", "2m"))
	g.Expect(view).To(HaveKeyWithValue("files", HaveLen(2)))
	g.Expect(view["handlers"]).To(HaveKeyWithValue("husk", HaveKeyWithValue("max_image_size", "2GiB")))

	out, err = p.run(t, "", "config", "--format", `{{.MaxPulls}}\t{{.LogLevel}}`)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal("3\tinfo\n"))

	p.edit(t, "husk.toml.d/50-site.toml", "max_pulls", "max_pullz")
	out, err = p.run(t, "", "config")
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("50-site.toml: max_pullz: unknown key")))
	g.Expect(out).To(BeEmpty(), "a configuration that is refused is not shown as one")
}

func TestConfigCheck(t *testing.T) {
	for name, c := range map[string]struct {
		file, from, to string   // what is changed in a configuration that is right
		want           []string // file: key: of each line
	}{
		"nothing wrong":     {"husk.toml", "", "", nil},
		"unknown key":       {"husk.toml", "listen", "lisen = 1\nlisten", []string{"husk.toml: lisen: "}},
		"no such handler":   {"husk.toml", "listen", "assume_handler = 'hsuk'\nlisten", []string{"husk.toml: assume_handler: "}},
		"no shim":           {"crio.conf", "/containerd-shim-husk-v2", "/containerd-shim-gone-v2", []string{"crio.conf: crio.runtime.runtimes.husk.runtime_path: "}},
		"one socket":        {"crio.conf", "backend.sock", "front.sock", []string{"crio.conf: crio.api.listen: "}},
		"storage driver":    {"crio.conf", `"vfs"`, `"zfss"`, []string{"crio.conf: crio.storage_driver: "}},
		"misspelt handler":  {"crio.conf", "runtime_pull_image = true", "runtime_pull_image = true\nruntime_pullimage = true", []string{"crio.conf: crio.runtime.runtimes.husk.runtime_pullimage: "}},
		"no TOML at CRI-O":  {"crio.conf", "[crio]", "[crio", []string{"crio.conf: line 3"}},
		"CRI-O has none":    {"husk.toml", "/crio.conf", "/gone.conf", []string{"gone.conf: cannot be read"}},
		"no TOML":           {"husk.toml", "listen =", "listen", []string{"husk.toml: "}},
		"no policy":         {"policy.json", "default", "defalut", []string{"crio.conf: crio.image.signature_policy: "}},
		"no registries":     {"registries.conf", "[]", "[", []string{"registries.conf: "}},
		"wrong everywhere":  {"husk.toml", "listen", "max_pulls = -1\ndefault_handler = 'hsuk'\nlisten", []string{"husk.toml: max_pulls: ", "husk.toml: default_handler: "}},
		"credentials wrong": {"auth.json", "{}", "{hunter2", []string{"crio.conf: crio.image.global_auth_file: "}},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			p := rightPlace(t)
			if c.from != "" {
				p.edit(t, c.file, c.from, c.to)
			}
			out, err := p.run(t, "", "config", "--check")
			if c.want == nil {
				g.Expect(err).NotTo(HaveOccurred(), out)
				g.Expect(out).To(BeEmpty())
				return
			}
			g.Expect(exitCode(err)).To(Equal(exitFailure))
			lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
			g.Expect(lines).To(HaveLen(len(c.want)), out)
			for i, want := range c.want {
				g.Expect(lines[i]).To(HavePrefix(p.dir+"/"+want), out)
			}
			g.Expect(out).NotTo(ContainSubstring("hunter2"))

			out, err = p.run(t, "", "config", "--check", "--format", "json")
			g.Expect(exitCode(err)).To(Equal(exitFailure))
			var problems []config.Problem
			g.Expect(json.Unmarshal([]byte(out), &problems)).To(Succeed())
			g.Expect(problems).To(HaveLen(len(c.want)))
		})
	}
	g := NewWithT(t)
	out, err := rightPlace(t).run(t, "", "config", "--check", "--format", "json")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(MatchJSON(`[]`))
}

func TestVersion(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	p.husk = filepath.Join(p.dir, "none.toml") // it needs no configuration
	out, err := p.run(t, "", "version")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal("husk " + version + "\n" + runtime.Version() + " linux/" + runtime.GOARCH + "\n"))
	out, err = p.run(t, "", "version", "--format", "json")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(MatchJSON(`{"version":"` + version + `","go_version":"` + runtime.Version() + `","platform":"linux/` + runtime.GOARCH + `"}`))
	out, err = p.run(t, "", "version", "--format", "{{.Version}}")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal(version + "\n"))
}
