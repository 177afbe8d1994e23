package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	imagekit "github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// guestRun runs husk guest with a work directory of its own.
func guestRun(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	var out, logs bytes.Buffer
	app := &cli.App{Name: "husk", Writer: &out, ErrWriter: &logs, Commands: []*cli.Command{guestCommand()}, ExitErrHandler: func(*cli.Context, error) {}}
	flags := []string{"--cdh-config", filepath.Join(dir, "cdh.toml"), "--kernel-parameters", "/dev/null"}
	if args[0] == "pull" || args[0] == "serve" {
		flags = append(flags, "--run-dir", filepath.Join(dir, "run"), "--bundle-parent", filepath.Join(dir, "bundles"), "--aa-socket", filepath.Join(dir, "none"))
	}
	err := app.RunContext(t.Context(), append(append([]string{"husk", "guest", args[0]}, flags...), args[1:]...))
	return out.String(), err
}

func TestGuestCommands(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers hold files of other owners")
	}
	before := runtime.GOMAXPROCS(1) // as main leaves it
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	g := NewWithT(t)
	dir, layout := t.TempDir(), t.TempDir()
	registry := fakeregistry.New(t, fakeregistry.Options{})
	summary, err := imagekit.Build(t.Context(), layout, "t", imagekit.Spec{Layers: []imagekit.Layer{{Random: 1000}}})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(imagekit.Push(t.Context(), layout, "t", registry.Host()+"/app:t")).To(Succeed())
	config := "[image]\nwork_dir = \"" + dir + "/work\"\n[[image.registry_config.registry]]\nlocation = \"" + registry.Host() + "\"\ninsecure = true\n"
	g.Expect(os.WriteFile(filepath.Join(dir, "cdh.toml"), []byte(config), 0o600)).To(Succeed())

	out, err := guestRun(t, dir, "images")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(HavePrefix("REFERENCE"))
	g.Expect(strings.Count(out, "\n")).To(Equal(1))

	out, err = guestRun(t, dir, "pull", registry.Host()+"/app:t")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal(summary.Digest.String() + "\n"))
	g.Expect(runtime.GOMAXPROCS(0)).To(Equal(before), "a pull uses all processors")
	entries, err := os.ReadDir(filepath.Join(dir, "run"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(entries).To(BeEmpty(), "no file with credentials is left")

	out, err = guestRun(t, dir, "inspect", registry.Host()+"/app:t")
	g.Expect(err).NotTo(HaveOccurred())
	var shown map[string]any
	g.Expect(json.Unmarshal([]byte(out), &shown)).To(Succeed())
	g.Expect(shown).To(And(HaveKeyWithValue("manifest_digest", summary.Digest.String()), HaveKey("config"), HaveKey("image_id")))

	out, err = guestRun(t, dir, "images", "--format", "{{.Name}} {{.Layers}}")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal(registry.Host() + "/app:t 1\n"))

	for _, args := range [][]string{{"pull"}, {"pull", "a", "b"}, {"images", "x"}, {"inspect"}, {"serve", "x"}, {"pull", "--bundle", "relative", "a"}} {
		_, err := guestRun(t, dir, args...)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v: %v", args, err)
	}
	_, err = guestRun(t, dir, "inspect", "nothing")
	g.Expect(exitCode(err)).To(Equal(exitNotFound))
}
