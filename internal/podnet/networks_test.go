package podnet

import (
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestNetworks(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	c := Config{ConfDir: filepath.Join(dir, "net.d"), PluginDirs: []string{filepath.Join(dir, "none"), filepath.Join(dir, "bin")}}
	g.Expect(c.Networks(t.Context())).To(BeEmpty(), "no directory is no network")
	g.Expect(os.MkdirAll(c.ConfDir, 0o700)).To(Succeed())
	g.Expect(os.MkdirAll(c.PluginDirs[1], 0o700)).To(Succeed())
	writePlugin(t, c.PluginDirs[1], "one", "exit 1\n")
	writeRaw(t, filepath.Join(c.PluginDirs[1], "old"), "#!/bin/sh\necho '{\"cniVersion\":\"0.1.0\",\"supportedVersions\":[\"0.1.0\"]}'\n")
	list := func(name, plugin string) string {
		return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"` + plugin + `"}]}`
	}
	for name, text := range map[string]string{
		"05-broken.conflist": "{", "06-absent.conflist": list("absent", "absent"), "07-old.conflist": list("old", "old"),
		"08-no-type.conf": `{"cniVersion":"1.0.0","name":"no-type"}`, "09-empty.conflist": `{"cniVersion":"1.0.0","name":"empty","plugins":[]}`,
		"20-b.conflist": list("b", "one"), "30-a.conf": `{"cniVersion":"1.0.0","name":"a","type":"one"}`,
		"40-c.json": `{"cniVersion":"1.0.0","name":"c","type":"one"}`, "50-b.conflist": list("b", "one"),
		"60-d.conflist.bak": list("d", "one"),
	} {
		writeRaw(t, filepath.Join(c.ConfDir, name), text)
	}
	g.Expect(c.Networks(t.Context())).To(Equal([]string{"b", "a", "c"}), "of what can be used, by file")
	plugin, err := c.plugin(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(plugin.GetDefaultNetworkName()).To(Equal("b"), "as ocicni has it")
	c.DefaultNetwork = "c"
	g.Expect(c.Networks(t.Context())).To(Equal([]string{"c", "b", "a"}))
	c.DefaultNetwork = "absent"
	g.Expect(c.Networks(t.Context())).To(Equal([]string{"b", "a", "c"}))

	for name, want := range map[string]struct {
		says  string
		known bool
	}{
		"a":      {"", true},
		"":       {`failed to find plugin "absent"`, true},
		"absent": {`failed to find plugin "absent"`, true},
		"old":    {`does not support config version "1.0.0"`, true},
		"d":      {`05-broken.conflist cannot be used`, false},
	} {
		why, known := c.missing(t.Context(), name)
		g.Expect(known).To(Equal(want.known), name)
		if want.says == "" {
			g.Expect(why).NotTo(HaveOccurred(), name)
			continue
		}
		g.Expect(why).To(MatchError(ContainSubstring(want.says)), name)
	}

	c.ConfDir = filepath.Join(c.ConfDir, "30-a.conf")
	_, err = c.Networks(t.Context())
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal), "%v", err)
}

func TestZeroIsTheDefault(t *testing.T) {
	t.Parallel()
	NewWithT(t).Expect(Config{}.filled()).To(Equal(Config{
		ConfDir: "/etc/cni/net.d", PluginDirs: []string{"/opt/cni/bin"}, CacheDir: "/var/lib/husk/cni",
	}))
}
