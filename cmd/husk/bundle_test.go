package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	imagekit "github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// bundle runs husk bundle as main does.
func (p place) bundle(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := newApp()
	app.Commands = []*cli.Command{bundleCommand()}
	app.Reader, app.Writer, app.ErrWriter = strings.NewReader(stdin), &out, &out
	err := app.RunContext(t.Context(), append([]string{"husk", "--config", p.husk, "bundle"}, args...))
	return out.String(), err
}

// readSpec reads the config.json of a bundle.
func readSpec(t *testing.T, dir string) *rspec.Spec {
	t.Helper()
	g := NewWithT(t)
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	g.Expect(err).NotTo(HaveOccurred())
	var spec *rspec.Spec
	g.Expect(json.Unmarshal(data, &spec)).To(Succeed())
	return spec
}

func TestBundle(t *testing.T) {
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{Layers: [][]byte{[]byte("a layer")}, Config: imgspec.Image{Config: imgspec.ImageConfig{
		User: "1000", Env: []string{"A=image", "PATH=/app"}, Entrypoint: []string{"/entry"}, Cmd: []string{"default"}, WorkingDir: "/srv", StopSignal: "SIGINT",
	}}})
	p := newPlace(t)
	repository, _, _ := strings.Cut(pushed.Reference, ":v1")
	pinned := repository + "@" + pushed.Digest.String()

	dir := filepath.Join(t.TempDir(), "bundle")
	out, err := p.bundle(t, "", pushed.Reference, dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal(pinned + "\n"))
	spec := readSpec(t, dir)
	g.Expect(spec.Process.Args).To(Equal([]string{"/entry", "default"}))
	g.Expect(spec.Process.Env).To(Equal([]string{"PATH=/app", "TERM=xterm", "A=image"}))
	g.Expect(spec.Process.Cwd).To(Equal("/srv"))
	g.Expect(spec.Process.User).To(Equal(rspec.User{UID: 1000, AdditionalGids: []uint32{0}}))
	g.Expect(spec.Root).To(Equal(&rspec.Root{Path: "rootfs"}))
	g.Expect(spec.Annotations).To(And(HaveKeyWithValue(annotations.CRIOImageName, pinned), HaveKeyWithValue("org.opencontainers.image.stopSignal", "SIGINT")))
	g.Expect(filepath.Join(dir, "rootfs")).To(BeADirectory())
	g.Expect(r.Asked(pushed.Layers[0].String())).To(BeFalse())
	g.Expect(filepath.Join(p.dir, "root")).NotTo(BeADirectory(), "needs no storage")

	t.Setenv("FROM_HUSK", "here")
	dir = t.TempDir()
	out, err = p.bundle(t, "", "-e", "A=b,c", "-e", "FROM_HUSK", "-e", "NOT_SET_ANYWHERE", "-u", "web:7", "-w", "/tmp", "--hostname", "h", "--read-only",
		"--tty", "--resolves-names", "--format", "json", pushed.Reference, dir, "--", "-x", "--", "y")
	g.Expect(err).NotTo(HaveOccurred())
	var view bundleView
	g.Expect(json.Unmarshal([]byte(out), &view)).To(Succeed())
	g.Expect(view).To(Equal(bundleView{
		Bundle: dir, Image: pinned, ImageID: pushed.ConfigDigest.Encoded(), ManifestDigest: pushed.Digest.String(), Platform: view.Platform, Layers: 1,
	}))
	spec = readSpec(t, dir)
	g.Expect(spec.Process.Args).To(Equal([]string{"/entry", "-x", "--", "y"}))
	g.Expect(spec.Process.Env).To(Equal([]string{"PATH=/app", "TERM=xterm", "HOSTNAME=h", "A=b,c", "FROM_HUSK=here"}))
	g.Expect(spec.Process.Cwd).To(Equal("/tmp"))
	g.Expect(spec.Process.Terminal).To(BeTrue())
	g.Expect(spec.Process.User).To(Equal(rspec.User{UID: 65534, GID: 7, AdditionalGids: []uint32{7}}))
	g.Expect(spec.Annotations).To(HaveKeyWithValue(annotations.User, `{"user":"web:7"}`))
	g.Expect(spec.Root.Readonly).To(BeTrue())
	g.Expect(spec.Hostname).To(Equal("h"))
}

func TestBundleOfALayout(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	layout, dir := t.TempDir(), filepath.Join(t.TempDir(), "bundle")
	summary, err := imagekit.Build(t.Context(), layout, "t", imagekit.Spec{Layers: []imagekit.Layer{{Random: 100}}})
	g.Expect(err).NotTo(HaveOccurred())
	out, err := p.bundle(t, "", "oci:"+layout+":t", dir, "--", "/bin/x")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(HaveSuffix("@" + summary.Digest.String() + "\n"))
	spec := readSpec(t, dir)
	g.Expect(spec.Process.Args).To(ContainElement("/bin/x"))
	g.Expect(spec.Annotations[annotations.CRIOImageName] + "\n").To(Equal(out))
}

func TestBundleWithCredentials(t *testing.T) {
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "alice", Password: "hunter2 is secret"})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{Config: imgspec.Image{Config: imgspec.ImageConfig{Cmd: []string{"x"}}}})
	p, dir := newPlace(t), filepath.Join(t.TempDir(), "bundle")
	_, err := p.bundle(t, "wrong is secret\n", "--username", "alice", "--password-stdin", pushed.Reference, dir)
	g.Expect(exitCode(err)).To(Equal(exitRefused), "%v", err)
	g.Expect(err.Error()).NotTo(ContainSubstring("is secret"))
	g.Expect(dir).NotTo(BeADirectory())
	_, err = p.bundle(t, "hunter2 is secret\n", "--username", "alice", "--password-stdin", pushed.Reference, dir)
	g.Expect(err).NotTo(HaveOccurred())
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).NotTo(ContainSubstring("is secret"))
}

func TestBundleRefuses(t *testing.T) {
	r := fakeregistry.New(t, fakeregistry.Options{})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{Config: imgspec.Image{Config: imgspec.ImageConfig{User: "web", Cmd: []string{"x"}}}})
	p := newPlace(t)
	full, dir := t.TempDir(), filepath.Join(t.TempDir(), "bundle")
	NewWithT(t).Expect(os.WriteFile(filepath.Join(full, "mine"), []byte("mine"), 0o600)).To(Succeed())
	for _, c := range []struct {
		args []string
		kind errdefs.Kind
		says string
	}{
		{nil, errdefs.InvalidArgument, "got 0 arguments"},
		{[]string{"a"}, errdefs.InvalidArgument, "got 1 arguments"},
		{[]string{"a", "b", "c"}, errdefs.InvalidArgument, "got 3 arguments"},
		{[]string{"a", "-e", "A=b", "c"}, errdefs.InvalidArgument, "options go before"},
		{[]string{"a", "--", "b", "c"}, errdefs.InvalidArgument, "behind --"},
		{[]string{"-e", "=b", "a", "b"}, errdefs.InvalidArgument, "has no name"},
		{[]string{"--username", "u", "a", "b"}, errdefs.InvalidArgument, "go together"},
		{[]string{"--format", "xml", "a", "b"}, errdefs.InvalidArgument, "neither text"},
		{[]string{pushed.Reference, dir}, errdefs.UserUnresolvable, `here that is --user UID:GID`},
		{[]string{"-u", "7:staff", pushed.Reference, dir}, errdefs.UserUnresolvable, `user "7:staff" is not numeric`},
		{[]string{"-u", "7", "-w", "srv", pushed.Reference, dir}, errdefs.InvalidArgument, "not an absolute path"},
		{[]string{"-u", "7", pushed.Reference, full}, errdefs.InvalidArgument, "directory not empty"},
		{[]string{"-u", "7", pushed.Reference, filepath.Join(dir, "deeper")}, errdefs.InvalidArgument, "no such file"},
		{[]string{pushed.Reference + "-none", dir}, errdefs.NotFound, "v1-none"},
		{[]string{"oci:/nowhere:t", dir}, errdefs.NotFound, "/nowhere"},
	} {
		g := NewWithT(t)
		out, err := p.bundle(t, "", c.args...)
		g.Expect(out).To(BeEmpty(), "%v", c.args)
		g.Expect(err).To(MatchError(ContainSubstring(c.says)), "%v", c.args)
		g.Expect(errdefs.KindOf(err)).To(Equal(c.kind), "%v: %v", c.args, err)
		g.Expect(dir).NotTo(BeADirectory(), "%v", c.args)
	}
	g := NewWithT(t)
	left, err := os.ReadDir(full)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(left).To(HaveLen(1))
}
