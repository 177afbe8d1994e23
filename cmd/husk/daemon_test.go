package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/metrics"
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// TestReload: a handler that is lost is said, and what is wrong changes nothing.
func TestReload(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	var logged bytes.Buffer
	d := &daemon{path: p.husk, log: slog.New(slog.NewTextHandler(&logged, nil)), metrics: metrics.New(metrics.Options{})}
	s, err := readSettings(p.husk)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(d.use(s)).To(Succeed())
	server, err := front.New(s.frontConfig(), front.Collaborators{Log: d.log})
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { NewWithT(t).Expect(server.Close()).To(Succeed()) })

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

// TestRecordsThatCannotBeChecked do not keep husk from serving.
func TestRecordsThatCannotBeChecked(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	_, err := p.run(t, "", "pull", r.Push(t, "app", "v1", fakeregistry.Image{}).Reference)
	g.Expect(err).NotTo(HaveOccurred())
	lock := filepath.Join(p.dir, "root", "husk.lock")
	g.Expect(os.Remove(lock)).To(Succeed())
	g.Expect(os.Mkdir(lock, 0o700)).To(Succeed())
	var logged bytes.Buffer
	app := newApp()
	app.ErrWriter = &logged
	var d *daemon
	app.Action = func(c *cli.Context) (err error) {
		d, err = newDaemon(c)
		return err
	}
	g.Expect(app.RunContext(t.Context(), []string{"husk", "--config", p.husk})).To(Succeed())
	g.Expect(d.metrics).NotTo(BeNil())
	g.Expect(logged.String()).To(ContainSubstring("check the image records"))
}
