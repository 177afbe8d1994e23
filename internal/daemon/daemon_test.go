package daemon

import (
	"bytes"
	"fmt"
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
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/storetest"
)

// place is a node's configuration in a directory of its own.
type place struct{ dir, husk string }

// newPlace writes both configurations; the machine's own are not read.
func newPlace(t *testing.T) place {
	t.Helper()
	p := place{dir: t.TempDir()}
	p.write(t, "policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	p.write(t, "auth.json", `{}`)
	p.write(t, "registries.conf", "unqualified-search-registries = []\n")
	p.write(t, "crio.conf", fmt.Sprintf(`
[crio]
root = "%[1]s/root"
runroot = "%[1]s/run"
storage_driver = "vfs"
[crio.api]
listen = "%[1]s/backend.sock"
[crio.runtime.runtimes.husk]
runtime_path = "/usr/local/bin/containerd-shim-husk-v2"
runtime_type = "vm"
runtime_pull_image = true
[crio.image]
global_auth_file = "%[1]s/auth.json"
signature_policy = "%[1]s/policy.json"
signature_policy_dir = "%[1]s/policies"
`, p.dir))
	p.husk = p.write(t, "husk.toml", fmt.Sprintf(`
crio_config = "%[1]s/crio.conf"
crio_config_dir = "%[1]s/none"
registries_conf = "%[1]s/registries.conf"
registries_conf_dir = "%[1]s/none"
listen = "%[1]s/front.sock"
`, p.dir))
	return p
}

func (p place) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	NewWithT(t).Expect(os.WriteFile(path, []byte(text), 0o600)).To(Succeed())
	return path
}

// started is a daemon with the place's configuration in force, and what it logs.
func (p place) started(t *testing.T) (*daemon, *front.Server, *bytes.Buffer) {
	t.Helper()
	g := NewWithT(t)
	logged := new(bytes.Buffer)
	d := &daemon{options: Options{Path: p.husk}, log: slog.New(slog.NewTextHandler(logged, nil)), metrics: metrics.New(metrics.Options{})}
	s, err := ReadSettings(p.husk, "test")
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
	p := newPlace(t)
	d, server, logged := p.started(t)

	const lost = "no longer lets these runtime handlers pull in the guest"
	g.Expect(d.reload(t.Context(), server)).To(Succeed())
	g.Expect(logged.String()).NotTo(ContainSubstring(lost))
	conf, err := os.ReadFile(filepath.Join(p.dir, "crio.conf"))
	g.Expect(err).NotTo(HaveOccurred())
	p.write(t, "crio.conf", strings.Replace(string(conf), "runtime_pull_image = true", "", 1))
	g.Expect(d.reload(t.Context(), server)).To(Succeed())
	g.Expect(logged.String()).To(MatchRegexp(lost + `.*handlers=\[husk\]`))

	inForce := d.now.Load()
	g.Expect(inForce.GuestPull()).To(BeEmpty())
	p.write(t, "crio.conf", string(conf)+"[")
	g.Expect(d.reload(t.Context(), server)).NotTo(Succeed())
	g.Expect(d.now.Load()).To(BeIdenticalTo(inForce))
}

// TestReloadNamesWhatWaitsForARestart: a change that is taken back waits for nothing, and
// one that is not does so until the restart.
func TestReloadNamesWhatWaitsForARestart(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	d, server, logged := p.started(t)
	husk, err := os.ReadFile(p.husk)
	g.Expect(err).NotTo(HaveOccurred())
	crio, err := os.ReadFile(filepath.Join(p.dir, "crio.conf"))
	g.Expect(err).NotTo(HaveOccurred())
	reload := func(huskExtra, crioStorage string) string {
		logged.Reset()
		p.write(t, "husk.toml", string(husk)+huskExtra)
		p.write(t, "crio.conf", strings.Replace(string(crio), p.dir+"/run", p.dir+crioStorage, 1))
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
	p := newPlace(t)
	lock := filepath.Join(p.dir, "root", "husk.lock")
	store, err := cstore.Open(cstore.Options{GraphRoot: filepath.Join(p.dir, "root"), RunRoot: filepath.Join(p.dir, "run"), Driver: "vfs"})
	g.Expect(err).NotTo(HaveOccurred())
	_, err = store.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"}))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Remove(lock)).To(Succeed())
	g.Expect(os.Mkdir(lock, 0o700)).To(Succeed())
	var logged bytes.Buffer
	d, err := newDaemon(t.Context(), Options{Path: p.husk, Version: "test", Log: &logged})
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
