package daemon

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/metrics"
	"github.com/husk-cri/husk/internal/testkit/huskconf"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/storetest"
)

// place is a node's configuration in a directory of its own.
type place struct{ huskconf.Place }

// started is a daemon with the place's configuration in force, and what it logs.
func (p place) started(t *testing.T) (*daemon, *front.Server, *bytes.Buffer) {
	t.Helper()
	g := NewWithT(t)
	logged := new(bytes.Buffer)
	d := &daemon{options: Options{Path: p.File}, log: slog.New(slog.NewTextHandler(logged, nil)), metrics: metrics.New(metrics.Options{})}
	s, err := checkedSettings(p.File, "test")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(d.use(s)).To(Succeed())
	server, err := front.New(s.frontConfig(), front.Collaborators{Log: d.log})
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { NewWithT(t).Expect(server.Close()).To(Succeed()) })
	return d, server, logged
}

// TestReload: a handler that is lost is said, and what is wrong changes nothing.
func TestReload(t *testing.T) {
	g := NewWithT(t)
	p := place{huskconf.New(t)}
	d, server, logged := p.started(t)

	const lost = "no longer lets these runtime handlers pull in the guest"
	g.Expect(d.reload(t.Context(), server)).To(Succeed())
	g.Expect(logged.String()).NotTo(ContainSubstring(lost))
	conf, err := os.ReadFile(filepath.Join(p.Dir, "crio.conf"))
	g.Expect(err).NotTo(HaveOccurred())
	p.Write(t, "crio.conf", strings.Replace(string(conf), "runtime_pull_image = true", "", 1))
	g.Expect(d.reload(t.Context(), server)).To(Succeed())
	g.Expect(logged.String()).To(MatchRegexp(lost + `.*handlers=\[husk\]`))

	inForce := d.now.Load()
	g.Expect(inForce.GuestPull()).To(BeEmpty())
	p.Write(t, "crio.conf", string(conf)+"[")
	g.Expect(d.reload(t.Context(), server)).NotTo(Succeed())
	g.Expect(d.now.Load()).To(BeIdenticalTo(inForce))
}

// TestReloadNamesWhatWaitsForARestart: a change that is taken back waits for nothing, and
// one that is not does so until the restart.
func TestReloadNamesWhatWaitsForARestart(t *testing.T) {
	g := NewWithT(t)
	p := place{huskconf.New(t)}
	d, server, logged := p.started(t)
	husk, err := os.ReadFile(p.File)
	g.Expect(err).NotTo(HaveOccurred())
	crio, err := os.ReadFile(filepath.Join(p.Dir, "crio.conf"))
	g.Expect(err).NotTo(HaveOccurred())
	reload := func(huskExtra, crioStorage string) string {
		logged.Reset()
		p.Write(t, "husk.toml", string(husk)+huskExtra)
		p.Write(t, "crio.conf", strings.Replace(string(crio), p.Dir+"/run", p.Dir+crioStorage, 1))
		g.Expect(d.reload(t.Context(), server)).To(Succeed())
		return logged.String()
	}
	const waits = "take effect when husk is restarted"
	for range 2 {
		g.Expect(reload("log_format = \"json\"\n", "/other")).To(MatchRegexp(waits + `.*keys="\[log_format crio.runroot\]"`))
	}
	g.Expect(reload("log_format = \"json\"\n", "/run")).To(MatchRegexp(waits + `.*keys=\[log_format\]`))
	g.Expect(reload("", "/run")).NotTo(ContainSubstring(waits))
}

// TestRecordsThatCannotBeChecked do not keep husk from serving.
func TestRecordsThatCannotBeChecked(t *testing.T) {
	g := NewWithT(t)
	p := place{huskconf.New(t)}
	lock := filepath.Join(p.Dir, "root", "husk.lock")
	store, err := cstore.Open(cstore.Options{GraphRoot: filepath.Join(p.Dir, "root"), RunRoot: filepath.Join(p.Dir, "run"), Driver: "vfs"})
	g.Expect(err).NotTo(HaveOccurred())
	_, err = store.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"}))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Remove(lock)).To(Succeed())
	g.Expect(os.Mkdir(lock, 0o700)).To(Succeed())
	var logged bytes.Buffer
	d, err := newDaemon(t.Context(), Options{Path: p.File, Version: "test", Log: &logged})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(d.metrics).NotTo(BeNil())
	g.Expect(logged.String()).To(ContainSubstring("check the image records"))
}

func TestOneLeastRecordTTL(t *testing.T) {
	t.Parallel()
	NewWithT(t).Expect(config.MinRecordTTL).To(Equal(cstore.MinTTL))
}

func TestStoreOptions(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	got := storeOptions(crioconf.Storage{Root: "/r", RunRoot: "/rr", ImageStore: "/i", Driver: "d", Options: []string{"o"}})
	g.Expect([]any{got.GraphRoot, got.RunRoot, got.ImageStore, got.Driver, got.DriverOptions}).
		To(Equal([]any{"/r", "/rr", "/i", "d", []string{"o"}}))
	system, err := systemStorage()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(system.Root).NotTo(BeEmpty())
	g.Expect(system.RunRoot).NotTo(BeEmpty())
}

// TestNamedUsersAndEagerPull: what both configurations say of a handler becomes what the
// front does for it.
func TestNamedUsersAndEagerPull(t *testing.T) {
	g := NewWithT(t)
	p := place{huskconf.New(t)}
	own, err := os.ReadFile(p.File)
	g.Expect(err).NotTo(HaveOccurred())
	crio, err := os.ReadFile(filepath.Join(p.Dir, "crio.conf"))
	g.Expect(err).NotTo(HaveOccurred())
	p.Write(t, "crio.conf", string(crio)+`
[crio.runtime.runtimes.other]
runtime_path = "/usr/local/bin/containerd-shim-other-v2"
runtime_type = "vm"
runtime_pull_image = true
`)
	type does struct{ resolves, refuses, pulls, lazy bool }
	for text, want := range map[string]struct{ husk, other does }{
		"":                                 {does{resolves: true, pulls: true}, does{refuses: true}},
		"named_users = 'refuse'":           {does{refuses: true, pulls: true}, does{refuses: true}},
		"named_users = 'refuse-at-create'": {does{pulls: true}, does{}},
		"named_users = 'sandbox'":          {does{resolves: true, pulls: true}, does{resolves: true}},
		"eager_pull = false":               {does{resolves: true, pulls: true, lazy: true}, does{refuses: true, lazy: true}},
		"eager_pull = true":                {does{resolves: true, pulls: true}, does{refuses: true}},
	} {
		p.Write(t, "husk.toml", string(own)+"[handlers.husk]\n"+text+"\n[handlers.other]\n"+text+"\n")
		settings, err := ReadSettings(p.File, "test")
		g.Expect(err).NotTo(HaveOccurred())
		for name, does := range map[string]does{"husk": want.husk, "other": want.other} {
			h, ok := settings.Handler(name)
			g.Expect(ok && h.GuestPull).To(BeTrue())
			g.Expect([]bool{h.ResolvesNames, h.RefusesNamedPulls, h.PullsLayers, h.LazyPull}).
				To(Equal([]bool{does.resolves, does.refuses, does.pulls, does.lazy}), "%s: %s", name, text)
		}
	}
}
