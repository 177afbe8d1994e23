package bundles

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/storage"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// place is a graph root that Husk and a stand-in for CRI-O share.
type place struct {
	*Store
	opts Options
	// crio has the same graph root through a handle of its own: another run root
	// keeps containers/storage from handing out the same one, so that it sees only
	// what is on disk, as another process does.
	crio   storage.Store
	images *cstore.Store
	record imageref.Record
}

func newPlace(t testing.TB, driver string) *place {
	t.Helper()
	g := NewWithT(t)
	if driver == "overlay" && os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	p := &place{opts: Options{GraphRoot: filepath.Join(root, "graph"), RunRoot: filepath.Join(root, "run"), Driver: driver}}
	var err error
	p.crio, err = storage.GetStore(storage.StoreOptions{
		GraphRoot: p.opts.GraphRoot, RunRoot: filepath.Join(root, "crio-run"), GraphDriverName: driver,
		GraphDriverOptions: map[string][]string{"overlay": {"overlay.skip_mount_home=true"}}[driver],
	})
	g.Expect(err).NotTo(HaveOccurred())
	p.Store, err = Open(p.opts)
	g.Expect(err).NotTo(HaveOccurred())
	p.images, err = cstore.Open(cstore.Options(p.opts))
	g.Expect(err).NotTo(HaveOccurred())
	return p
}

// pulled puts an image record into the store.
func (p *place) pulled(t *testing.T) *place {
	t.Helper()
	var err error
	p.record, err = p.images.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", PulledAt: time.Now().UTC()}))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return p
}

// sound fails the test if containers/storage finds anything wrong, or a layer that no
// container has.
func (p *place) sound(t *testing.T) {
	t.Helper()
	g := NewWithT(t)
	report, err := p.crio.Check(storage.CheckEverything())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(report.Images).To(BeEmpty())
	g.Expect(report.Layers).To(BeEmpty())
	g.Expect(report.Containers).To(BeEmpty())
	containers, err := p.crio.Containers()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.crio.Layers()).To(HaveLen(len(containers)), "a layer for each container")
	for _, root := range []string{p.opts.GraphRoot, p.opts.RunRoot} {
		dirs, err := filepath.Glob(filepath.Join(root, p.opts.Driver+"-containers", "*", "userdata"))
		g.Expect(err).NotTo(HaveOccurred())
		for _, d := range dirs {
			g.Expect(p.crio.Exists(filepath.Base(filepath.Dir(d)))).To(BeTrue(), "%s is left", d)
		}
	}
	g.Expect(os.ReadDir(filepath.Join(p.opts.GraphRoot, pendingName))).To(BeEmpty())
}

func drivers(t *testing.T, test func(t *testing.T, p *place)) {
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, driver).pulled(t)
			test(t, p)
			p.sound(t)
		})
	}
}

func sandbox(name string) Container {
	id := NewID()
	return Container{
		ID: id, Name: name + "-infra", Sandbox: true,
		Pod:     Pod{ID: id, Name: name, Hostname: name, Network: "bridge", Netns: "/run/netns/" + name, IPs: []string{"10.0.0.2"}, CgroupParent: "/husk"},
		Runtime: Runtime{Name: "husk", Path: "/usr/bin/containerd-shim-husk-v2"},
		Args:    []string{"/pause"},
	}
}

func (p *place) member(pod Container, name string) Container {
	return Container{
		ID: NewID(), Name: name, Pod: Pod{ID: pod.ID, Name: "whatever"},
		Image: Image{
			RecordID: p.record.StorageID, ImageID: p.record.ImageID(),
			Ref: p.record.References[0].Pinned().String(), UserImage: "app",
		},
		Runtime: Runtime{Name: "kata", Path: "/opt/shim", ConfigPath: "/etc/kata.toml"},
		Args:    []string{"sh", "-c", "echo <hi> && exit"}, Terminal: true, Stdin: true, AutoRemove: true,
		Labels: map[string]string{"tier": "web"},
	}
}

func someSpec() *rspec.Spec {
	return &rspec.Spec{
		Version: "1.2.1", Hostname: "h", Root: &rspec.Root{Path: "rootfs", Readonly: true},
		Process:     &rspec.Process{Args: []string{"sh", "-c", "a && b > c"}, Env: []string{"A=<1>"}, Cwd: "/"},
		Annotations: map[string]string{"husk.dev/x": "é"},
	}
}

func (p *place) create(t testing.TB, c Container) Container {
	t.Helper()
	made, err := p.Create(t.Context(), c, someSpec())
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return made
}

// pod makes the pod web of a sandbox and a member each for the names.
func (p *place) pod(t testing.TB, members ...string) []Container {
	t.Helper()
	list := []Container{p.create(t, sandbox("web"))}
	for _, m := range members {
		list = append(list, p.create(t, p.member(list[0], m)))
	}
	return list
}

// foreign makes a container as CRI-O makes it.
func (p *place) foreign(t *testing.T, name, metadata string) string {
	t.Helper()
	c, err := p.crio.CreateContainer("", []string{name}, "", "", metadata, &storage.ContainerOptions{Volatile: true})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return c.ID
}

func names(list []Container) []string {
	out := []string{}
	for i := range list {
		out = append(out, list[i].Name)
	}
	return out
}

func TestLife(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		g.Expect(p.List(t.Context())).To(BeEmpty())
		before := time.Now().UTC()
		sb := p.create(t, sandbox("web"))
		g.Expect(sb.Created).To(And(BeTemporally(">=", before), BeTemporally("<=", time.Now())))
		g.Expect(sb.Pod.Created).To(Equal(sb.Created))
		want := p.member(sb, "nginx")
		c := p.create(t, want)
		want.Created, want.Pod, want.State.Status = c.Created, sb.Pod, StatusCreated
		g.Expect(c).To(Equal(want), "the pod is the sandbox's")

		// Another process sees the same.
		other, err := Open(Options{GraphRoot: p.opts.GraphRoot, RunRoot: t.TempDir(), Driver: p.opts.Driver})
		g.Expect(err).NotTo(HaveOccurred())
		for _, s := range []*Store{p.Store, other} {
			g.Expect(s.List(t.Context())).To(Equal([]Container{sb, c}))
			for _, key := range []string{"nginx", c.ID, c.ID[:12]} {
				g.Expect(s.Get(t.Context(), key)).To(Equal(c), key)
			}
			for _, key := range []string{"web", sb.ID, sb.ID[:12]} {
				g.Expect(s.Members(t.Context(), key)).To(Equal([]Container{sb, c}), key)
			}
		}
		g.Expect(p.Check(t.Context())).To(BeEmpty())

		bundle := p.finished(t, c)
		g.Expect(p.Remove(t.Context(), c.ID)).To(Succeed())
		g.Expect(bundle).NotTo(BeADirectory())
		g.Expect(p.Remove(t.Context(), "web-infra")).To(Succeed(), "by name")
		g.Expect(p.List(t.Context())).To(BeEmpty())
		g.Expect(p.crio.Containers()).To(BeEmpty())
		g.Expect(p.Remove(t.Context(), c.ID)).To(Succeed(), "gone is gone")
		_, err = p.Get(t.Context(), c.ID)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	})
}

// finished makes a bundle and checks that only what should differs from the template.
func (p *place) finished(t *testing.T, c Container) string {
	t.Helper()
	g := NewWithT(t)
	bundle, err := p.Finish(t.Context(), c.ID, nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.RunDir(c.ID)).To(Equal(bundle))
	g.Expect(strings.HasPrefix(bundle, p.opts.RunRoot+"/")).To(BeTrue())
	g.Expect(os.ReadDir(filepath.Join(bundle, "rootfs"))).To(BeEmpty())
	want := someSpec()
	want.Root.Path = filepath.Join(bundle, "rootfs")
	g.Expect(readSpec(t, bundle)).To(Equal(want))

	dir, err := p.Dir(c.ID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(readSpec(t, dir)).To(Equal(someSpec()), "the template stays as it was")
	return bundle
}

func readSpec(t *testing.T, dir string) *rspec.Spec {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	var spec rspec.Spec
	NewWithT(t).Expect(json.Unmarshal(data, &spec)).To(Succeed())
	return &spec
}

func TestFinishAgain(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	c := p.pod(t, "nginx")[1]
	bundle, err := p.Finish(t.Context(), c.ID, func(s *rspec.Spec) error {
		s.Hostname, s.Root.Path = "changed", "/elsewhere"
		return nil
	})
	g.Expect(err).NotTo(HaveOccurred())
	first := readSpec(t, bundle)
	g.Expect([]string{first.Hostname, first.Root.Path}).To(Equal([]string{"changed", "/elsewhere"}))

	refused := errors.New("no")
	_, err = p.Finish(t.Context(), c.ID, func(*rspec.Spec) error { return refused })
	g.Expect(err).To(MatchError(refused))
	g.Expect(readSpec(t, bundle)).To(Equal(first), "a change that fails leaves what was there")
	_, err = p.Finish(t.Context(), c.ID, func(s *rspec.Spec) error { s.Hostname = strings.Repeat("x", MaxSpec); return nil })
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
	g.Expect(readSpec(t, bundle)).To(Equal(first))

	g.Expect(os.RemoveAll(p.opts.RunRoot)).To(Succeed(), "a reboot")
	p.finished(t, c)
	_, err = p.Finish(t.Context(), NewID(), nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	_, err = p.Finish(t.Context(), c.ID[:12], nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "a prefix is no ID")
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	pod := p.pod(t, "nginx")
	before, err := p.List(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	noImage := imageref.RecordID(imageref.ManifestDigest{})
	for name, tc := range map[string]struct {
		change func(*Container)
		kind   errdefs.Kind
		exists bool
	}{
		"name taken":         {func(c *Container) { c.Name = "nginx" }, errdefs.InUse, true},
		"ID taken":           {func(c *Container) { c.ID = pod[1].ID }, errdefs.InUse, true},
		"ID of an image":     {func(c *Container) { c.ID = p.record.StorageID.String() }, errdefs.InUse, true},
		"pod's name taken":   {func(c *Container) { *c = sandbox("web"); c.Name = "other" }, errdefs.InUse, true},
		"no such image":      {func(c *Container) { c.Image.RecordID = noImage }, errdefs.NotFound, false},
		"no such pod":        {func(c *Container) { c.Pod.ID = NewID() }, errdefs.NotFound, false},
		"pod is a member":    {func(c *Container) { c.Pod.ID = pod[1].ID }, errdefs.NotFound, false},
		"short ID":           {func(c *Container) { c.ID = "abc" }, errdefs.InvalidArgument, false},
		"digest as ID":       {func(c *Container) { c.ID = "sha256:" + c.ID }, errdefs.InvalidArgument, false},
		"upper case ID":      {func(c *Container) { c.ID = strings.ToUpper(c.ID) }, errdefs.InvalidArgument, false},
		"no name":            {func(c *Container) { c.Name = "" }, errdefs.InvalidArgument, false},
		"name with a slash":  {func(c *Container) { c.Name = "a/b" }, errdefs.InvalidArgument, false},
		"name with newline":  {func(c *Container) { c.Name = "a\n" }, errdefs.InvalidArgument, false},
		"name too long":      {func(c *Container) { c.Name = strings.Repeat("a", 254) }, errdefs.InvalidArgument, false},
		"name is an ID":      {func(c *Container) { c.Name = pod[1].ID }, errdefs.InvalidArgument, false},
		"pod's name bad":     {func(c *Container) { *c = sandbox("x"); c.Pod.Name = "../x" }, errdefs.InvalidArgument, false},
		"no image":           {func(c *Container) { c.Image = Image{} }, errdefs.InvalidArgument, false},
		"sandbox with image": {func(c *Container) { *c = sandbox("x"); c.Image.RecordID = p.record.StorageID }, errdefs.InvalidArgument, false},
		"sandbox of another": {func(c *Container) { *c = sandbox("x"); c.Pod.ID = pod[0].ID }, errdefs.InvalidArgument, false},
		"member as sandbox":  {func(c *Container) { c.ID = c.Pod.ID }, errdefs.InvalidArgument, false},
		"unknown status":     {func(c *Container) { c.State.Status = "paused" }, errdefs.InvalidArgument, false},
		"year 10000":         {func(c *Container) { c.Created = time.Date(10000, 1, 2, 0, 0, 0, 0, time.UTC) }, errdefs.InvalidArgument, false},
		"root cgroup":        {func(c *Container) { *c = sandbox("x"); c.Pod.CgroupParent = "/" }, errdefs.InvalidArgument, false},
		"relative netns":     {func(c *Container) { *c = sandbox("x"); c.Pod.Netns = "netns" }, errdefs.InvalidArgument, false},
		"relative runtime":   {func(c *Container) { c.Runtime.Path = "./shim" }, errdefs.InvalidArgument, false},
		"labels too long":    {func(c *Container) { c.Labels["a"] = strings.Repeat("x", MaxMetadata) }, errdefs.InvalidArgument, false},
	} {
		c := p.member(pod[0], "new")
		tc.change(&c)
		_, err := p.Create(t.Context(), c, someSpec())
		g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%s: %v", name, err)
		g.Expect(errors.Is(err, ErrExists)).To(Equal(tc.exists), name)
		g.Expect(p.List(t.Context())).To(Equal(before), name)
		g.Expect(p.Check(t.Context())).To(BeEmpty(), "%s: nothing is left for a sweep", name)
	}
	_, err = p.Create(t.Context(), p.member(pod[0], "new"), nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
	long := someSpec()
	long.Hostname = strings.Repeat("x", MaxSpec)
	_, err = p.Create(t.Context(), p.member(pod[0], "new"), long)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = p.Create(canceled, p.member(pod[0], "new"), someSpec())
	g.Expect(err).To(MatchError(context.Canceled))
	p.sound(t)
	g.Expect(p.Check(t.Context())).To(BeEmpty())
	_, err = p.Create(t.Context(), p.member(pod[0], strings.Repeat("n", 253)), someSpec())
	g.Expect(err).NotTo(HaveOccurred(), "the longest name")
}

func TestArgsAreCut(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	c := p.member(p.pod(t)[0], "long")
	c.Args = []string{"sh", strings.Repeat("é", MaxArgs), "last"}
	made := p.create(t, c)
	g.Expect(made.Args).To(Equal([]string{"sh", strings.Repeat("é", MaxArgs/2-1) + "..."}))
	g.Expect(p.Get(t.Context(), "long")).To(Equal(made))
	_, err := p.Update(t.Context(), made.ID, func(c *Container) { c.State.ExitCode = 1 })
	g.Expect(err).NotTo(HaveOccurred())
	made.State.ExitCode = 1
	g.Expect(p.Get(t.Context(), "long")).To(Equal(made), "an update leaves them as they are")
}

func TestGet(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	pod := p.pod(t)[0]
	ids := []string{"aa" + NewID()[2:], "aab" + NewID()[3:], "b" + NewID()[1:]}
	ids[0] = "aaa" + ids[0][3:]
	for i, name := range []string{"one", "two", "aaa"} {
		c := p.member(pod, name)
		c.ID = ids[i]
		p.create(t, c)
	}
	for key, want := range map[string]string{"one": ids[0], "aaa": ids[2], ids[0][:10]: ids[0], "aab": ids[1], ids[1]: ids[1]} {
		c, err := p.Get(t.Context(), key)
		g.Expect(err).NotTo(HaveOccurred(), key)
		g.Expect(c.ID).To(Equal(want), key)
	}
	for key, want := range map[string]errdefs.Kind{
		"aa": errdefs.InvalidArgument, "": errdefs.NotFound, "on": errdefs.NotFound, "web": errdefs.NotFound,
		"husk:container:one": errdefs.NotFound, layerID(ids[0]): errdefs.NotFound,
	} {
		_, err := p.Get(t.Context(), key)
		g.Expect(errdefs.KindOf(err)).To(Equal(want), "%q: %v", key, err)
	}
	for key, want := range map[string]errdefs.Kind{"one": errdefs.NotFound, "": errdefs.NotFound, ids[0]: errdefs.NotFound} {
		_, err := p.Members(t.Context(), key)
		g.Expect(errdefs.KindOf(err)).To(Equal(want), "%q: %v", key, err)
	}
}
