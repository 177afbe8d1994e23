package bundles

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/storage"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// crioMetadata is what CRI-O 1.34 stores of a container.
const crioMetadata = `{"pod-name":"k8s_p_default_u_0","pod-id":"x","image-name":"i","image-id":"y","name":"k8s_c","metadata-name":"c","created-at":1}`

// TestGolden pins the stored text. CRI-O takes a container for its own if its metadata
// has pod-name, pod-id or the like at the top.
func TestGolden(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	c := p.pod(t, "nginx")[1]
	rec, err := p.crio.Container(c.ID)
	g.Expect(err).NotTo(HaveOccurred())
	var top map[string]json.RawMessage
	g.Expect(json.Unmarshal([]byte(rec.Metadata), &top)).To(Succeed())
	g.Expect(top).To(And(HaveLen(1), HaveKey("husk")))
	var husk struct {
		Version   int
		Container map[string]any
	}
	g.Expect(json.Unmarshal(top["husk"], &husk)).To(Succeed())
	g.Expect(husk.Version).To(Equal(1))
	created := husk.Container["created"]
	g.Expect(husk.Container).To(Equal(map[string]any{
		"id": c.ID, "name": "nginx", "created": created,
		"pod": map[string]any{
			"id": c.Pod.ID, "name": "web", "hostname": "web", "network": "bridge", "netns": "/run/netns/web",
			"ips": []any{"10.0.0.2"}, "cgroup_parent": "/husk", "created": husk.Container["pod"].(map[string]any)["created"],
		},
		"image": map[string]any{
			"record_id": p.record.StorageID.String(), "image_id": p.record.ImageID().String(),
			"ref": c.Image.Ref, "user_image": "app",
		},
		"runtime":  map[string]any{"name": "kata", "path": "/opt/shim", "config_path": "/etc/kata.toml"},
		"args":     []any{"sh", "-c", "echo <hi> && exit"},
		"terminal": true, "stdin": true, "auto_remove": true,
		"labels": map[string]any{"tier": "web"},
		"state":  map[string]any{"status": "created"},
	}))
	g.Expect(rec.Names).To(Equal([]string{"husk:container:nginx"}))
}

func TestDamagedMetadata(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		damage func(text string, c Container) string
		kind   Kind
	}{
		"empty":              {func(string, Container) string { return "" }, DamagedRecord},
		"cut":                {func(s string, _ Container) string { return s[:len(s)/2] }, DamagedRecord},
		"null":               {func(string, Container) string { return "null" }, UnknownVersion},
		"no husk":            {func(string, Container) string { return "{}" }, UnknownVersion},
		"CRI-O's":            {func(string, Container) string { return crioMetadata }, UnknownVersion},
		"two values":         {func(s string, _ Container) string { return s + s }, DamagedRecord},
		"newer":              {func(s string, _ Container) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) }, UnknownVersion},
		"unknown field":      {func(s string, _ Container) string { return strings.Replace(s, `"state":`, `"new":1,"state":`, 1) }, DamagedRecord},
		"another's":          {func(s string, c Container) string { return strings.ReplaceAll(s, c.ID, NewID()) }, DamagedRecord},
		"another name":       {func(s string, _ Container) string { return strings.ReplaceAll(s, "nginx", "other") }, DamagedRecord},
		"another image":      {func(s string, c Container) string { return strings.ReplaceAll(s, c.Image.RecordID.String(), NewID()) }, DamagedRecord},
		"no pod":             {func(s string, c Container) string { return strings.ReplaceAll(s, c.Pod.ID, "") }, DamagedRecord},
		"pod without a name": {func(s string, _ Container) string { return strings.Replace(s, `"name":"web"`, `"name":"\n"`, 1) }, DamagedRecord},
		"year 0":             {func(s string, _ Container) string { return strings.ReplaceAll(s, `"created":"20`, `"created":"00`) }, ""},
		"year -1":            {func(s string, _ Container) string { return strings.ReplaceAll(s, `"created":"20`, `"created":"-1`) }, DamagedRecord},
		"status":             {func(s string, _ Container) string { return strings.ReplaceAll(s, `"created"}`, `"undead"}`) }, DamagedRecord},
		"no digest":          {func(s string, _ Container) string { return strings.Replace(s, "sha256:", "sha1:", 1) }, DamagedRecord},
		"another zone":       {func(s string, _ Container) string { return strings.Replace(s, `Z"`, `+02:00"`, 1) }, DamagedRecord},
		"network":            {func(s string, _ Container) string { return strings.Replace(s, `"bridge"`, `"../bridge"`, 1) }, DamagedRecord},
		"relative netns":     {func(s string, _ Container) string { return strings.Replace(s, `"/run/netns/web"`, `"netns"`, 1) }, DamagedRecord},
		"odd netns":          {func(s string, _ Container) string { return strings.Replace(s, `"/run/netns/`, `"/run/../`, 1) }, DamagedRecord},
		"NUL in the netns":   {func(s string, _ Container) string { return strings.Replace(s, `"/run/netns/`, `"/run\u0000/`, 1) }, DamagedRecord},
		"root cgroup":        {func(s string, _ Container) string { return strings.Replace(s, `"/husk"`, `"/"`, 1) }, DamagedRecord},
		"cgroup above":       {func(s string, _ Container) string { return strings.Replace(s, `"/husk"`, `"/husk/.."`, 1) }, DamagedRecord},
		"relative cgroup":    {func(s string, _ Container) string { return strings.Replace(s, `"/husk"`, `"husk"`, 1) }, DamagedRecord},
		"no address":         {func(s string, _ Container) string { return strings.Replace(s, `"10.0.0.2"`, `"10.0.0"`, 1) }, DamagedRecord},
		"relative runtime":   {func(s string, _ Container) string { return strings.Replace(s, `"/opt/shim"`, `"shim"`, 1) }, DamagedRecord},
		"relative config":    {func(s string, _ Container) string { return strings.Replace(s, `"/etc/kata.toml"`, `"x/kata.toml"`, 1) }, DamagedRecord},
		"negative size": {func(s string, _ Container) string {
			return strings.Replace(s, `template_size":`, `template_size":-`, 1)
		}, DamagedRecord},
		"huge size": {func(s string, _ Container) string {
			return strings.Replace(s, `template_size":`, `template_size":999999999`, 1)
		}, DamagedRecord},
		"too long": {func(s string, _ Container) string { return s + strings.Repeat(" ", MaxMetadata) }, DamagedRecord},
		"deep":     {func(string, Container) string { return strings.Repeat("[", MaxMetadata) }, DamagedRecord},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPlace(t, "vfs").pulled(t)
			pod := p.pod(t, "nginx", "side")
			rec, err := p.crio.Container(pod[1].ID)
			g.Expect(err).NotTo(HaveOccurred())
			text := tc.damage(rec.Metadata, pod[1])
			g.Expect(text).NotTo(Equal(rec.Metadata), "the test damages nothing")
			g.Expect(p.crio.SetMetadata(rec.ID, text)).To(Succeed())
			if tc.kind == "" { // it is another time, and as good
				g.Expect(p.List(t.Context())).To(HaveLen(3))
				return
			}
			g.Expect(p.List(t.Context())).To(Equal([]Container{pod[0], pod[2]}), "the others are there")
			g.Expect(p.Members(t.Context(), "web")).To(Equal([]Container{pod[0], pod[2]}))
			g.Expect(p.Check(t.Context())).To(ConsistOf(And(
				HaveField("Kind", tc.kind), HaveField("ID", rec.ID), HaveField("Name", "nginx"), HaveField("Detail", Not(BeEmpty())))))
			for _, key := range []string{"nginx", rec.ID, rec.ID[:20]} {
				_, err := p.Get(t.Context(), key)
				g.Expect(err).To(MatchError(ErrDamaged), key)
				g.Expect(err.Error()).To(ContainSubstring(rec.ID), "it says what to remove")
			}
			_, err = p.Update(t.Context(), rec.ID, func(*Container) {})
			g.Expect(err).To(MatchError(ErrDamaged))
			_, err = p.Finish(t.Context(), rec.ID, nil)
			g.Expect(err).To(MatchError(ErrDamaged))
			g.Expect(p.UpdatePod(t.Context(), pod[0].ID, func(q *Pod) { q.IPs = nil })).To(Succeed())
			g.Expect(p.crio.Metadata(rec.ID)).To(Equal(text), "nobody wrote over it")
			_, err = p.Create(t.Context(), p.member(pod[0], "nginx"), someSpec())
			g.Expect(err).To(MatchError(ErrExists))

			g.Expect(p.Remove(t.Context(), "nginx")).To(Succeed())
			g.Expect(p.Check(t.Context())).To(BeEmpty())
			p.create(t, p.member(pod[0], "nginx"))
			p.sound(t)
		})
	}
}

func TestDamagedTemplate(t *testing.T) {
	t.Parallel()
	canary := filepath.Join(t.TempDir(), "canary")
	NewWithT(t).Expect(os.WriteFile(canary, []byte("{}"), 0o600)).To(Succeed())
	for name, damage := range map[string]func(path string) error{
		"gone":      os.Remove,
		"cut":       func(path string) error { return os.Truncate(path, 3) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"longer":    func(path string) error { return os.Truncate(path, 1<<30) },
		"a link":    func(path string) error { return errors.Join(os.Remove(path), os.Symlink(canary, path)) },
		"a FIFO":    func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"one bit": func(path string) error {
			data, err := os.ReadFile(path)
			if err == nil {
				data[len(data)/2] ^= 1
				err = os.WriteFile(path, data, 0o600)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPlace(t, "vfs").pulled(t)
			pod := p.pod(t, "nginx", "side")
			dir, err := p.Dir(pod[1].ID)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(damage(filepath.Join(dir, templateName))).To(Succeed())
			_, err = p.Finish(t.Context(), pod[1].ID, nil)
			g.Expect(err).To(MatchError(ErrDamaged))
			run, err := p.RunDir(pod[1].ID)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(os.ReadDir(run)).To(BeEmpty(), "no bundle was made")
			g.Expect(p.Check(t.Context())).To(ConsistOf(And(HaveField("Kind", DamagedTemplate), HaveField("ID", pod[1].ID))))
			g.Expect(p.List(t.Context())).To(Equal(pod), "it can still be stopped")
			p.finished(t, pod[2])
			g.Expect(p.Remove(t.Context(), "nginx")).To(Succeed())
			g.Expect(canary).To(BeAnExistingFile())
			p.sound(t)
		})
	}
}

func TestLostPodAndImage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	pod := p.pod(t, "nginx")
	err := p.Remove(t.Context(), pod[0].ID)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse), "the sandbox is removed last")
	g.Expect(p.List(t.Context())).To(Equal(pod))

	g.Expect(p.crio.DeleteContainer(pod[0].ID)).To(Succeed())
	g.Expect(p.Check(t.Context())).To(ConsistOf(HaveField("Kind", LostPod)))
	g.Expect(p.Members(t.Context(), "web")).To(Equal(pod[1:]))
	again := p.pod(t, "two")
	g.Expect(p.Members(t.Context(), "web")).To(Equal(again), "the name is the new pod's")
	g.Expect(p.Members(t.Context(), pod[0].ID)).To(Equal(pod[1:]))
	g.Expect(p.UpdatePod(t.Context(), pod[0].ID, func(q *Pod) { q.IPs = nil })).To(Succeed())
	g.Expect(p.Remove(t.Context(), "nginx")).To(Succeed())
	g.Expect(p.Check(t.Context())).To(BeEmpty())

	// By force, with containers/storage's own files.
	g.Expect(os.WriteFile(filepath.Join(p.opts.GraphRoot, "vfs-images", "images.json"), []byte("[]"), 0o600)).To(Succeed())
	fresh, err := Open(Options{GraphRoot: p.opts.GraphRoot, RunRoot: t.TempDir(), Driver: "vfs"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(fresh.Check(t.Context())).To(ConsistOf(And(HaveField("Kind", LostImage), HaveField("Name", "two"))))
	g.Expect(fresh.List(t.Context())).To(Equal(again))
	g.Expect(fresh.Remove(t.Context(), "two")).To(Succeed())
}

// What other tools keep in the same storage is theirs.
func TestOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		pod := p.pod(t, "nginx")
		rec, err := p.crio.Container(pod[1].ID)
		g.Expect(err).NotTo(HaveOccurred())
		others := map[string]string{
			"nginx":                 `{"created-at":1}`, // podman's, with a name of Husk's
			"web":                   "",
			"k8s_c_p_default_u_0":   crioMetadata,
			"husk-nginx":            "not JSON",
			"copied":                rec.Metadata, // Husk's metadata without Husk's name
			"husk:pod:somebody":     "{}",
			"prefixhusk:container:": "{}",
		}
		ids := map[string]string{}
		for name, text := range others {
			ids[name] = p.foreign(t, name, text)
		}
		g.Expect(p.List(t.Context())).To(Equal(pod))
		g.Expect(p.Check(t.Context())).To(BeEmpty())
		for name, id := range ids {
			_, err := p.Get(t.Context(), id)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), name)
			_, err = p.Update(t.Context(), id, func(*Container) {})
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), name)
			_, err = p.Dir(id)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), name)
			err = p.Remove(t.Context(), id)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%s: %v", name, err)
		}
		for _, id := range ids { // not even with a mark, had the ID been taken over
			g.Expect(p.mark(id)).To(Succeed())
		}
		g.Expect(p.Sweep(t.Context())).To(HaveLen(len(ids)))
		g.Expect(p.Remove(t.Context(), "nginx")).To(Succeed(), "Husk's own")
		g.Expect(p.Remove(t.Context(), "nginx")).To(Succeed())
		g.Expect(p.Remove(t.Context(), "web-infra")).To(Succeed())
		left, err := p.crio.Containers()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(left).To(HaveLen(len(ids)))
		for i := range left {
			g.Expect(others).To(HaveKeyWithValue(left[i].Names[0], left[i].Metadata))
		}
	})
}

// What is mounted in a bundle may be a volume of the user's.
func TestMountsAreNotEmptied(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		c := p.pod(t, "nginx")[1]
		volume := t.TempDir()
		canary := filepath.Join(volume, "canary")
		g.Expect(os.WriteFile(canary, nil, 0o600)).To(Succeed())
		bundle, err := p.Finish(t.Context(), c.ID, nil)
		g.Expect(err).NotTo(HaveOccurred())
		dir, err := p.Dir(c.ID)
		g.Expect(err).NotTo(HaveOccurred())
		for _, at := range []string{filepath.Join(bundle, "rootfs"), dir} {
			g.Expect(unix.Mount(volume, at, "", unix.MS_BIND, "")).To(Succeed())
			unmount := func() { _ = unix.Unmount(at, unix.MNT_DETACH) }
			t.Cleanup(unmount)
			err = p.Remove(t.Context(), c.ID)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse), "%v", err)
			g.Expect(p.Get(t.Context(), "nginx")).To(Equal(c), "it is as it was")
			g.Expect(p.mark(c.ID)).To(Succeed())
			_, err = p.Sweep(t.Context())
			g.Expect(err).To(MatchError(ContainSubstring("mounted on " + at)))
			g.Expect(p.unmark(c.ID)).To(Succeed())
			g.Expect(canary).To(BeAnExistingFile())
			unmount()
		}
		g.Expect(p.Remove(t.Context(), c.ID)).To(Succeed())
		g.Expect(canary).To(BeAnExistingFile())
	})
}

// A store that was reset under a process is a new one.
func TestReset(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	p.pod(t, "nginx")
	g.Expect(p.crio.Wipe()).To(Succeed())
	g.Expect(p.List(t.Context())).To(BeEmpty())
	g.Expect(p.Sweep(t.Context())).To(BeEmpty())
	p.pulled(t).pod(t, "nginx")
	_, err := p.crio.Container(storedNameOf("nginx"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.List(t.Context())).To(HaveLen(2))

	_, err = Open(Options{GraphRoot: t.TempDir()})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
	g.Expect(errdefs.KindOf(mapped("x", storage.ErrLayerUnknown))).To(Equal(errdefs.Internal))
}

func storedNameOf(name string) string { return namePrefix + name }
