package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/testkit/cdhclient"
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestPull(t *testing.T) {
	t.Parallel()
	for name, encrypted := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			m := newMachine(t, "", nil)
			spec := appSpec()
			if encrypted {
				spec.Encrypt = m.keys()
			}
			image := m.push("app", spec)
			_, want, _ := strings.Cut(image, "@")
			digest, err := m.pull(image, m.path("bundles/c1"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(digest).To(Equal(want))

			g.Expect(m.read("bundles/c1/rootfs/data")).To(Equal("from the image"))
			g.Expect(m.mounts()).To(HaveLen(1))
			config := m.spec("bundles/c1")
			g.Expect(config.Process.Args).To(Equal([]string{"/app", "--go"}))
			g.Expect(config.Process.Env).To(Equal([]string{"A=1", "PATH=/bin", "HOME=/srv"}))
			g.Expect(config.Process.Cwd).To(Equal("/srv/app"))
			g.Expect(config.Process.User.UID).To(BeEquivalentTo(1234))
			g.Expect(config.Process.User.GID).To(BeEquivalentTo(1235))
			g.Expect(config.Process.User.AdditionalGids).To(Equal([]uint32{1235, 77}))
			g.Expect(config.Root.Path).To(Equal(m.path("bundles/c1/rootfs")))
			g.Expect(config.Hostname).To(Equal("image-rs"))
			g.Expect(config.Annotations).To(And(HaveKeyWithValue("l", "v"),
				HaveKeyWithValue("org.opencontainers.image.stopSignal", "SIGINT"),
				HaveKeyWithValue("org.opencontainers.image.exposedPorts", "80/tcp"),
				HaveKeyWithValue("org.opencontainers.image.os", "linux")))
			g.Expect(m.path("bundles/c1/rootfs/srv/app")).To(BeADirectory())
			g.Expect(m.path("bundles/c1/rootfs/vol")).To(BeADirectory())

			content, err := json.Marshal(map[string]string{"image": image, "digest": digest})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(m.measured()).To(HaveLen(1))
			event := m.measured()[0]
			g.Expect(event.Content).To(MatchJSON(content))
			event.Content = ""
			g.Expect(event).To(Equal(cdhclient.Event{Domain: "github.com/confidential-containers", Operation: "PullImage"}))

			// Again, without the registry; what one container writes the other does not see.
			m.registry.Stop()
			digest, err = m.pull(image, m.path("bundles/c2"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(digest).To(Equal(want))
			m.write("bundles/c1/rootfs/data", "changed")
			m.write("bundles/c1/rootfs/new", "new")
			g.Expect(m.read("bundles/c2/rootfs/data")).To(Equal("from the image"))
			g.Expect(m.path("bundles/c2/rootfs/new")).NotTo(BeAnExistingFile())

			m.stop()
			g.Expect(m.mounts()).To(BeEmpty())
			g.Expect(m.files("bundles")).To(BeEmpty())
			g.Expect(m.files("run")).To(BeEmpty())
			g.Expect(m.files("work/bundles")).To(Equal([]string{"lock"}))
			g.Expect(m.path("cdh.sock")).NotTo(BeAnExistingFile())
		})
	}
}

func TestTag(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	tag := m.registry.Host() + "/app:t"
	for i, want := range []string{"one", "two"} { // a tag that moves is followed
		image := m.push("app", images.Spec{Layers: []images.Layer{{Files: []images.File{{Path: "/data", Content: []byte(want)}}}}})
		digest, err := m.pull(tag, m.path(fmt.Sprintf("bundles/%d", i)))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(image).To(HaveSuffix("@" + digest))
		g.Expect(m.read(fmt.Sprintf("bundles/%d/rootfs/data", i))).To(Equal(want))
		g.Expect(m.spec(fmt.Sprint("bundles/", i)).Process.Args).To(Equal([]string{"sh"}), "as image-rs, where the image says nothing")
	}
	g.Expect(m.measured()[1].Content).To(ContainSubstring(tag), "the name that was asked for")
}

func TestFailures(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "", nil)
	good := m.push("app", appSpec())
	wrong := m.push("encrypted", images.Spec{Layers: []images.Layer{{Random: 500}}, Encrypt: m.keys()})
	m.write("keys/key.pem", "nothing")
	bad := appSpec()
	bad.Config.User = "nobody-here"
	unknown := m.push("user", bad)
	broken := m.push("broken", images.Spec{Layers: []images.Layer{{Random: 1 << 16}}})
	m.registry.On(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/broken/blobs/") }, fakeregistry.Corrupt())
	missing := m.registry.Host() + "/none@" + strings.Split(good, "@")[1]
	for name, tc := range map[string]struct{ image, text string }{
		"no such image":   {missing, missing},
		"no such tag":     {m.registry.Host() + "/app:none", "/app:none"},
		"no key":          {wrong, "encrypted"},
		"no such user":    {unknown, "nobody-here"},
		"changed content": {broken, "broken"},
		"no name":         {"", "the name of the image"},
		"long name":       {strings.Repeat("a", maxName+1), "the name of the image"},
		"malformed name":  {"not a name", "not a name"},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			_, err := m.pull(tc.image, m.path("bundles/c"))
			expectRefused(g, err, tc.text)
			g.Expect(m.files("bundles")).To(BeEmpty())
			g.Expect(m.mounts()).To(BeEmpty())
			g.Expect(m.files("work/bundles")).To(Equal([]string{"lock"}))
			g.Expect(m.measured()).To(BeEmpty())
		})
	}
	t.Run("not measured", func(t *testing.T) {
		g := NewWithT(t)
		m.mu.Lock()
		m.refuse = status.Error(codes.Internal, "no TPM")
		m.mu.Unlock()
		_, err := m.pull(good, m.path("bundles/c"))
		expectRefused(g, err, "no TPM")
		g.Expect(m.files("bundles")).To(BeEmpty())
		g.Expect(m.mounts()).To(BeEmpty())
	})
	t.Run("no attestation agent", func(t *testing.T) {
		g := NewWithT(t)
		g.Expect(os.Remove(m.path("aa/s"))).To(Succeed())
		_, err := m.pull(good, m.path("bundles/c"))
		g.Expect(err).NotTo(HaveOccurred())
	})
}

func TestOnePullPerBundle(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	gate := fakeregistry.NewGate()
	m.registry.On(fakeregistry.Manifest(""), gate.Fault())
	var first error
	var wg sync.WaitGroup
	wg.Go(func() { _, first = m.pull(image, m.path("bundles/c")) })
	<-gate.Arrived()
	_, err := m.pull(image, m.path("bundles/c"))
	expectRefused(g, err, "under way")
	m.registry.Heal()
	gate.Open()
	wg.Wait()
	g.Expect(first).NotTo(HaveOccurred())
	_, err = m.pull(image, m.path("bundles/c"))
	expectRefused(g, err, "has a config.json")
	g.Expect(m.read("bundles/c/rootfs/data")).To(Equal("from the image"), "the one that was there works on")
}

func TestHostileBundlePaths(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	g := NewWithT(t)
	for _, dir := range []string{"outside", "bundles/full", "bundles/linked", "bundles/dangling", "bundles/file"} {
		g.Expect(os.Mkdir(m.path(dir), 0o755)).To(Succeed())
	}
	m.write("outside/canary", "canary")
	m.write("bundles/full/config.json", "canary")
	m.write("bundles/file/rootfs", "canary")
	for link, target := range map[string]string{
		"bundles/link": "outside", "bundles/linked/rootfs": "outside", "bundles/dangling/config.json": "outside/none",
	} {
		g.Expect(os.Symlink(m.path(target), m.path(link))).To(Succeed())
	}
	before := m.files("bundles")
	for name, path := range map[string]string{
		"none":                  "",
		"relative":              "bundles/c",
		"parent":                m.path("bundles/../outside"),
		"not clean":             m.path("bundles") + "//c",
		"outside":               m.path("outside"),
		"the parent itself":     m.path("bundles"),
		"a sibling by prefix":   m.path("bundles-other"),
		"a link out":            m.path("bundles/link"),
		"below a link out":      m.path("bundles/link/sub"),
		"rootfs is a link":      m.path("bundles/linked"),
		"rootfs is a file":      m.path("bundles/file"),
		"config.json":           m.path("bundles/full"),
		"config.json dangling":  m.path("bundles/dangling"),
		"a file":                m.path("bundles/full/config.json"),
		"two that are missing":  m.path("bundles/a/b"),
		"with a zero byte":      m.path("bundles/c\x00/../../outside"),
		"longer than the limit": m.path("bundles/" + strings.Repeat("x", 5000)),
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			_, err := m.pull(image, path)
			expectRefused(g, err, "")
			g.Expect(m.mounts()).To(BeEmpty())
			g.Expect(m.files("outside")).To(Equal([]string{"canary"}))
			g.Expect(m.read("outside/canary")).To(Equal("canary"))
			g.Expect(m.read("bundles/full/config.json")).To(Equal("canary"))
			g.Expect(m.files("bundles")).To(Equal(before))
		})
	}
}

func TestOwnFilesAreNoBundles(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	m.stop()
	m.opts.WorkDir = m.path("bundles/image") // as in a Kata guest: below the bundles' parent
	m.start()
	image := m.push("app", appSpec())
	for _, path := range []string{"bundles/image", "bundles/image/layers", "bundles/image/bundles/x"} {
		_, err := m.pull(image, m.path(path))
		expectRefused(g, err, "its own files")
	}
	_, err := m.pull(image, m.path("bundles/c"))
	g.Expect(err).NotTo(HaveOccurred())
}

func TestForwarding(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", map[string][]byte{"kbs:///default/key/1": []byte("the resource")})
	data, err := m.client.GetResource(t.Context(), "kbs:///default/key/1")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).To(Equal("the resource"))
	_, err = m.client.GetResource(t.Context(), "kbs:///default/none/1")
	g.Expect(status.Convert(err).Message()).To(Equal("[CDH] [ERROR]: Get Resource failed"), "its own words")
	// What nobody has heard of yet.
	answer, err := m.client.Call(t.Context(), "api.FutureService", "Echo", []byte("\x0a\x03abc"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(answer)).To(Equal("\x0a\x03abc"))
	_, err = m.client.Call(t.Context(), "api.ImagePullService", "Other", nil)
	g.Expect(status.Code(err)).To(Equal(codes.Unimplemented), "%v", err)
}

func TestCredentialsOfTheKeyBroker(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	content := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	open := fakeregistry.New(t, fakeregistry.Options{Handler: content})
	private := fakeregistry.New(t, fakeregistry.Options{Username: "u", Password: "p", Handler: content})
	dir := t.TempDir()
	summary, err := images.Build(t.Context(), dir, "t", appSpec())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(images.Push(t.Context(), dir, "t", open.Host()+"/app:t")).To(Succeed())
	image := private.Host() + "/app@" + summary.Digest.String()

	const uri = "kbs:///default/credential/1"
	resources := map[string][]byte{uri: []byte(`{"auths":{"` + private.Host() + `":{"auth":"dTpw"}}}`)}
	registry := fmt.Sprintf("[[image.registry_config.registry]]\nlocation = %q\ninsecure = true\n", private.Host())
	m := newMachine(t, fmt.Sprintf("authenticated_registry_credentials_uri = %q\n%s", uri, registry), resources)
	_, err = m.pull(image, m.path("bundles/c"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(private.Users()).To(ContainElement("u"))
	g.Expect(m.read("bundles/c/rootfs/data")).To(Equal("from the image"))

	without := newMachine(t, registry, resources)
	_, err = without.pull(image, without.path("bundles/c"))
	expectRefused(g, err, "unauthorized")
	g.Expect(without.files("bundles")).To(BeEmpty())
}

func TestPolicyOfTheKeyBroker(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, `image_security_policy_uri = "kbs:///default/policy/1"`, map[string][]byte{
		"kbs:///default/policy/1": []byte(`{"default":[{"type":"reject"}]}`),
	})
	_, err := m.pull(m.push("app", appSpec()), m.path("bundles/c"))
	expectRefused(g, err, "policy")
	g.Expect(m.files("bundles")).To(BeEmpty())
}

// A configuration that somebody named is there, or nothing is pulled: it may have the policy.
func TestNamedConfigurationIsThere(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	m.opts.Config, m.opts.ConfigNamed = m.path("cdh.tmol"), true
	_, err := New(m.opts).Pull(t.Context(), image, "", nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("cdh.tmol")))
	_, err = New(m.opts).Images()
	g.Expect(err).To(HaveOccurred())
}

// A directory that cannot be read is not an empty one.
func TestImagesThatCannotBeListed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	g.Expect(os.MkdirAll(m.path("work"), 0o755)).To(Succeed())
	g.Expect(os.WriteFile(m.path("work/pulled"), nil, 0o600)).To(Succeed())
	_, err := New(m.opts).Images()
	g.Expect(err).To(MatchError(ContainSubstring("pulled")))
}

func TestImages(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	other := m.push("other", images.Spec{Layers: []images.Layer{{Random: 100}}})
	for _, i := range []string{image, other} {
		_, err := New(m.opts).Pull(t.Context(), i, "", nil)
		g.Expect(err).NotTo(HaveOccurred())
	}
	g.Expect(m.files("bundles")).To(BeEmpty())
	guest := New(m.opts)
	list, err := guest.Images()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(list).To(HaveLen(2))
	g.Expect(list[0].Reference).To(Equal(other))
	g.Expect(list[1].Config.Config.User).To(Equal("web"))
	for _, name := range []string{image, list[1].ImageID, list[1].ImageID[:8], list[1].ManifestDigest} {
		found, err := guest.Find(name)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(found).To(Equal(list[1]))
	}
	for _, name := range []string{"", "none", m.registry.Host() + "/app:t", list[1].ImageID[:2]} {
		_, err := guest.Find(name)
		g.Expect(err).To(HaveOccurred(), name)
	}
}
