package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestVolumes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, want := range map[string]string{
		dir + ":/d": "rw", dir + ":/d:ro": "ro", dir + ":/d/../e:rw": "rw",
	} {
		g := NewWithT(t)
		m, err := parseVolume(text)
		g.Expect(err).NotTo(HaveOccurred(), text)
		g.Expect(m.Source).To(Equal(dir))
		g.Expect(m.Options).To(Equal([]string{"rbind", "rprivate", want}))
		g.Expect(m.Destination).To(Or(Equal("/d"), Equal("/e")))
	}
	for text, kind := range map[string]errdefs.Kind{
		dir: errdefs.InvalidArgument, dir + ":d": errdefs.InvalidArgument, ":/d": errdefs.InvalidArgument,
		dir + ":/d:shared": errdefs.InvalidArgument, dir + ":/d:ro:x": errdefs.InvalidArgument, dir + "/none:/d": errdefs.NotFound,
	} {
		_, err := parseVolume(text)
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(kind), text)
	}
}

func TestRuntimes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	shim, plain, config := filepath.Join(dir, "containerd-shim-husk-v2"), filepath.Join(dir, "plain"), filepath.Join(dir, "shim.toml")
	g.Expect(os.WriteFile(shim, nil, 0o755)).To(Succeed())
	g.Expect(os.WriteFile(plain, nil, 0o600)).To(Succeed())
	g.Expect(os.WriteFile(config, nil, 0o600)).To(Succeed())
	handlers := map[string]crioconf.Handler{
		"husk": {Path: shim, Type: "vm", ConfigPath: config, PullImage: true},
		"runc": {Path: "/usr/bin/runc"},
	}
	r, err := runtimeOf("husk", "", handlers)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect([]string{r.Name, r.Path, r.ConfigPath}).To(Equal([]string{"husk", shim, config}))
	r, err = runtimeOf(shim, config, handlers)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect([]string{r.Name, r.Path, r.ConfigPath}).To(Equal([]string{shim, shim, config}))
	for _, c := range []struct {
		name, config string
		kind         errdefs.Kind
	}{
		{"runc", "", errdefs.Unsupported},
		{"nobody-has-it", "", errdefs.NotFound},
		{filepath.Join(dir, "none"), "", errdefs.NotFound},
		{plain, "", errdefs.NotFound},
		{dir, "", errdefs.NotFound},
		{"husk", config + ".none", errdefs.NotFound},
	} {
		_, err := runtimeOf(c.name, c.config, handlers)
		g.Expect(errdefs.KindOf(err)).To(Equal(c.kind), c.name)
		g.Expect(err).To(MatchError(ContainSubstring(c.name)))
	}
}

// TestExitCodes: a process' own is passed on without a word; husk's own is said.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, c := range []struct {
		err  error
		code int
		says string
	}{
		{nil, 0, ""},
		{statusOf(0), 0, ""},
		{statusOf(7), 7, ""},
		{errdefs.Newf(errdefs.NotFound, "run", "no"), exitNotFound, "husk: run: no\n"},
		{withStatus{errors.New("stopped"), 130}, 130, "husk: stopped\n"},
	} {
		var said bytes.Buffer
		g.Expect(complain(&said, c.err)).To(Equal(c.code))
		g.Expect(said.String()).To(Equal(c.says))
	}
}

func TestWrongRunCommandLines(t *testing.T) {
	p := newPlace(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"run"}, "no image"},
		{[]string{"run", "-d", "-i", "a"}, "--interactive goes neither with"},
		{[]string{"run", "oci:/x"}, "registries alone"},
		{[]string{"run", "-e", "=x", "a"}, "has no name"},
		{[]string{"run", "-v", "x", "a"}, "SOURCE:DESTINATION"},
		{[]string{"run", "--username", "u", "a"}, "go together"},
		{[]string{"run", "--net", "nowhere", "--runtime", "/bin/true", "a"}, "no CNI network"},
		{[]string{"exec", "a"}, "want a container and a command"},
		{[]string{"stop"}, "want a container or a pod"},
		{[]string{"logs"}, "got 0 arguments"},
		{[]string{"ps", "x"}, "takes no arguments"},
		{[]string{"rm", "a", "--force"}, "options go before"},
	} {
		g := NewWithT(t)
		out, err := p.run(t, "", c.args...)
		g.Expect(out).To(BeEmpty(), "%v", c.args)
		g.Expect(err).To(MatchError(ContainSubstring(c.says)), "%v", c.args)
	}
	g := NewWithT(t)
	for _, command := range []string{"ps", "pods"} {
		out, err := p.run(t, "", command, "--format", "json")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(out).To(Equal("[]\n"))
	}
	_, err := p.run(t, "", "rm", "registry.test/nothing:1")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
}
