package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly/cstore"
)

// runCheck runs husk check alone, as part of an app of its own.
func (p place) runCheck(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := newApp()
	app.Commands = append(app.Commands[:0:0], checkCommand())
	app.Writer, app.ErrWriter = &out, &out
	err := app.RunContext(t.Context(), append([]string{"husk", "--config", p.husk, "check"}, args...))
	return out.String(), err
}

// withStorage makes what CRI-O has left on the node: a storage without an image.
func (p place) withStorage(t *testing.T) place {
	t.Helper()
	NewWithT(t).Expect(os.Mkdir(filepath.Join(p.dir, "root"), 0o700)).To(Succeed())
	p.write(t, "root/"+storageLock, "")
	return p
}

func TestCheckCommand(t *testing.T) {
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{})
	p := newPlace(t).withStorage(t)
	out, err := p.runCheck(t)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal("records: 0, nothing is wrong\n"))
	_, err = p.run(t, "", "pull", pushed.Reference)
	g.Expect(err).NotTo(HaveOccurred())
	out, err = p.runCheck(t)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal("records: 1, nothing is wrong\n"))

	found, err := filepath.Glob(filepath.Join(p.dir, "*", "*-images", "*", "manifest"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found).To(HaveLen(1))
	g.Expect(os.Truncate(found[0], 3)).To(Succeed())
	out, err = p.runCheck(t)
	g.Expect(exitCode(err)).To(Equal(exitFailure))
	g.Expect(err).To(MatchError(ContainSubstring("husk check --repair")))
	g.Expect(strings.Split(out, "\n")).To(HaveLen(3))
	g.Expect(out).To(And(ContainSubstring("damaged-data"), ContainSubstring("left"), ContainSubstring(pushed.Reference)))

	out, err = p.runCheck(t, "--repair", "--format", "json")
	g.Expect(err).NotTo(HaveOccurred(), "repaired is as good as clean")
	var report cstore.Report
	g.Expect(json.Unmarshal([]byte(out), &report)).To(Succeed())
	g.Expect(report.Findings).To(HaveLen(1))
	g.Expect(report.Findings[0].Done).To(Equal(cstore.Mended))
	out, err = p.runCheck(t, "--format", "{{.Records}} {{len .Findings}}")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal("1 0\n"))
}

func TestCheckCommandLeavesWhatANewerHuskWrote(t *testing.T) {
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{})
	p := newPlace(t)
	_, err := p.run(t, "", "pull", pushed.Reference)
	g.Expect(err).NotTo(HaveOccurred())
	found, err := filepath.Glob(filepath.Join(p.dir, "*", "*-images", "images.json"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found).To(HaveLen(1))
	body, err := os.ReadFile(found[0])
	g.Expect(err).NotTo(HaveOccurred())
	newer := bytes.Replace(body, []byte(`\"version\":1`), []byte(`\"version\":7`), 1)
	g.Expect(newer).NotTo(Equal(body))
	g.Expect(os.WriteFile(found[0], newer, 0o600)).To(Succeed())
	// As any writer of containers/storage does, so that those who have read it see it.
	lock := strings.TrimSuffix(found[0], ".json") + ".lock"
	g.Expect(os.WriteFile(lock, bytes.Repeat([]byte("x"), 64), 0o600)).To(Succeed())
	out, err := p.runCheck(t, "--repair")
	g.Expect(exitCode(err)).To(Equal(exitFailure))
	g.Expect(out).To(And(ContainSubstring("unknown-version"), ContainSubstring("left"), ContainSubstring("version 7")))
	g.Expect(os.ReadFile(found[0])).To(Equal(newer))
}

func TestCheckCommandSeesContainers(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t).withStorage(t)
	_, err := p.runCheck(t)
	g.Expect(err).NotTo(HaveOccurred())
	// As a husk that was killed while it made a container leaves it.
	pending := filepath.Join(p.dir, "root", "husk-pending")
	g.Expect(os.MkdirAll(pending, 0o700)).To(Succeed())
	id := strings.Repeat("a", 64)
	g.Expect(os.WriteFile(filepath.Join(pending, id), nil, 0o600)).To(Succeed())
	out, err := p.runCheck(t)
	g.Expect(exitCode(err)).To(Equal(exitFailure))
	g.Expect(out).To(And(ContainSubstring("unfinished"), ContainSubstring("left"), ContainSubstring(id[:12])))
	out, err = p.runCheck(t, "--repair", "--format", "{{len .Containers}}")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal("0\n"))
	g.Expect(filepath.Join(pending, id)).NotTo(BeAnExistingFile())
}

func TestCheckCommandRefusesAShortTTL(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t).withStorage(t)
	conf, err := os.ReadFile(p.husk)
	g.Expect(err).NotTo(HaveOccurred())
	p.husk = p.write(t, "short.toml", string(conf)+"record_ttl = \"1s\"\n")
	_, err = p.runCheck(t)
	g.Expect(exitCode(err)).To(Equal(exitFailure))
	g.Expect(err).To(HaveOccurred())
}

func TestDetailsStayInTheirRow(t *testing.T) {
	t.Parallel()
	NewWithT(t).Expect(oneLine("a\tb\nc\x1b[31m\u009bd é")).To(Equal("a b c [31m d é"))
}
