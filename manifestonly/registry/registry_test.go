package registry_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

const accept = `{"default":[{"type":"insecureAcceptAnything"}]}`

// node is a node's configuration in a directory of its own.
type node struct {
	dir    string
	config registry.Config
}

// newNode has a policy that accepts everything and no other configuration; the
// machine's own is never read.
func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{dir: t.TempDir()}
	n.config = registry.Config{
		AuthFile:          n.write(t, "auth.json", `{}`),
		PolicyPath:        n.write(t, "policy.json", accept),
		PolicyDir:         filepath.Join(n.dir, "policies"),
		RegistriesConf:    n.write(t, "registries.conf", ""),
		RegistriesConfDir: filepath.Join(n.dir, "registries.conf.d"),
		RegistriesD:       filepath.Join(n.dir, "registries.d"),
		CertsD:            filepath.Join(n.dir, "certs.d"),
	}
	// Without this, signatures would be looked for in /var/lib/containers/sigstore.
	n.write(t, "registries.d/default.yaml", "default-docker:\n  lookaside: file://"+n.dir+"/signatures\n")
	return n
}

func chmodExecutable(path string) error { return os.Chmod(path, 0o700) }

func (n *node) write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// pull runs a pull with a deadline and checks, whatever comes of it, that a
// failed one left nothing in the store.
func (n *node) pull(t *testing.T, req manifestonly.Request) (manifestonly.Result, *storetest.Memory, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if req.Platform.Architecture == "" {
		req.Platform = imgspec.Platform{OS: "linux", Architecture: "amd64"}
	}
	store := &storetest.Memory{}
	result, err := manifestonly.Pull(ctx, req, registry.New(n.config), store)
	if err != nil {
		if left, _ := store.List(t.Context()); len(left) > 0 {
			t.Errorf("the failed pull left %d records", len(left))
		}
	}
	return result, store, err
}

func layers() [][]byte { return [][]byte{[]byte("layer one"), []byte("layer two, longer")} }

func TestPullReadsNoLayer(t *testing.T) {
	t.Parallel()
	for name, image := range map[string]fakeregistry.Image{
		"OCI":       {Layers: layers(), Config: imgspec.Image{Config: imgspec.ImageConfig{User: "web"}}},
		"docker":    {Layers: layers(), Docker: true, Config: imgspec.Image{Config: imgspec.ImageConfig{User: "web"}}},
		"encrypted": {Layers: layers(), Encrypted: true, Config: imgspec.Image{Config: imgspec.ImageConfig{User: "web"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "team/app", "v1", image)
			result, store, err := newNode(t).pull(t, manifestonly.Request{Name: p.Reference})
			g.Expect(err).NotTo(HaveOccurred())

			rec := result.Record
			g.Expect(rec.ImageID().String()).To(Equal(p.ConfigDigest.Encoded()))
			g.Expect(rec.Manifest.Digest()).To(Equal(p.Digest))
			g.Expect(result.Pulled.Pinned().String()).To(Equal(p.Repository + "@" + p.Digest.String()))
			g.Expect(result.Pulled.Reference.String()).To(Equal(p.Reference))
			g.Expect(rec.Image.Config.User).To(Equal("web"))
			g.Expect(rec.Layers).To(Equal(2))
			g.Expect(rec.LayerBytes).To(Equal(int64(len("layer one") + len("layer two, longer"))))
			g.Expect(rec.EncryptedLayers).To(Equal(map[bool]int{true: 2}[image.Encrypted]))
			g.Expect(store.Get(t.Context(), rec.StorageID)).To(Equal(rec))

			// The proof by behaviour: these requests and no other.
			g.Expect(r.Paths()).To(Equal([]string{
				"GET /v2/",
				"GET /v2/team/app/manifests/v1",
				"GET /v2/team/app/blobs/" + p.ConfigDigest.String(),
			}))
			for _, l := range p.Layers {
				g.Expect(r.Asked(l.String())).To(BeFalse())
			}
		})
	}
}

func TestPullThroughIndex(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	amd := r.Push(t, "app", "amd", fakeregistry.Image{Layers: layers()})
	arm := r.Push(t, "app", "arm", fakeregistry.Image{Layers: layers(), Config: imgspec.Image{Platform: imgspec.Platform{OS: "linux", Architecture: "arm64"}}})
	index := r.PushIndex(t, "app", "multi", arm.Entry("linux", "arm64", "v8"), amd.Entry("linux", "amd64", ""))
	n := newNode(t)

	for _, name := range []string{index.Reference, index.Repository + "@" + index.Digest.String(), index.Reference + "@" + index.Digest.String()} {
		r.Forget()
		result, _, err := n.pull(t, manifestonly.Request{Name: name})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(result.Record.Manifest.Digest()).To(Equal(amd.Digest))
		g.Expect(result.Pulled.Digest.Digest()).To(Equal(index.Digest), "the reference resolved to the index")
		g.Expect(r.Requests()).To(HaveLen(4), "ping, index, manifest, config")
	}
	result, _, err := n.pull(t, manifestonly.Request{Name: index.Reference, Platform: imgspec.Platform{OS: "linux", Architecture: "arm64"}})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Record.Manifest.Digest()).To(Equal(arm.Digest))

	_, _, err = n.pull(t, manifestonly.Request{Name: index.Reference, Platform: imgspec.Platform{OS: "linux", Architecture: "riscv64"}})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NoPlatform), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("linux/riscv64")))
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	const user, pass, refresh = "alice", "correct horse", "refresh-me"
	basic := fakeregistry.Options{Username: user, Password: pass}
	bearer := fakeregistry.Options{Username: user, Password: pass, Bearer: true, IdentityToken: refresh}
	for name, c := range map[string]struct {
		opts fakeregistry.Options
		cred func(*fakeregistry.Registry) registryauth.Credentials
		want errdefs.Kind // Internal: it works
	}{
		"basic":               {basic, creds(registryauth.Credentials{Username: user, Password: pass}), errdefs.Internal},
		"basic by auth":       {basic, creds(registryauth.Credentials{Auth: "YWxpY2U6Y29ycmVjdCBob3JzZQ=="}), errdefs.Internal},
		"basic wrong":         {basic, creds(registryauth.Credentials{Username: user, Password: "wrong horse"}), errdefs.Unauthorized},
		"basic none":          {basic, creds(registryauth.Credentials{}), errdefs.Unauthorized},
		"bearer":              {bearer, creds(registryauth.Credentials{Username: user, Password: pass}), errdefs.Internal},
		"bearer wrong":        {bearer, creds(registryauth.Credentials{Username: user, Password: "wrong horse"}), errdefs.Unauthorized},
		"bearer none":         {bearer, creds(registryauth.Credentials{}), errdefs.Unauthorized},
		"bearer identity":     {bearer, creds(registryauth.Credentials{IdentityToken: refresh}), errdefs.Internal},
		"bearer bad identity": {bearer, creds(registryauth.Credentials{IdentityToken: "something else"}), errdefs.Unauthorized},
		"bearer ready": {bearer, func(r *fakeregistry.Registry) registryauth.Credentials {
			return registryauth.Credentials{RegistryToken: r.BearerToken()}
		}, errdefs.Internal},
		"auth not base64": {basic, creds(registryauth.Credentials{Auth: "%%%secret%%%"}), errdefs.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, c.opts)
			p := r.Push(t, "app", "v1", fakeregistry.Image{})
			cred := c.cred(r)
			_, _, err := newNode(t).pull(t, manifestonly.Request{Name: p.Reference, Credentials: cred})
			if c.want == errdefs.Internal {
				g.Expect(err).NotTo(HaveOccurred())
				return
			}
			g.Expect(errdefs.KindOf(err)).To(Equal(c.want), "%v", err)
			for _, secret := range []string{cred.Password, cred.Auth, cred.IdentityToken, cred.RegistryToken} {
				if secret != "" {
					g.Expect(fmt.Sprintf("%v %+v %s", err, err, errdefs.ToGRPC(err))).NotTo(ContainSubstring(secret))
				}
			}
		})
	}
}

func creds(c registryauth.Credentials) func(*fakeregistry.Registry) registryauth.Credentials {
	return func(*fakeregistry.Registry) registryauth.Credentials { return c }
}

func TestHostileRegistryCannotMakeUsRepeatCredentials(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "alice", Password: "correct horse"})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	r.On(fakeregistry.Manifest(""), fakeregistry.Echo(403))
	_, _, err := newNode(t).pull(t, manifestonly.Request{
		Name:        p.Reference,
		Credentials: registryauth.Credentials{Username: "alice", Password: "correct horse"},
	})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%v", err)
	g.Expect(err.Error()).To(ContainSubstring("alice"), "the echo did arrive")
	g.Expect(err.Error()).NotTo(ContainSubstring("correct horse"))
	g.Expect(err.Error()).NotTo(ContainSubstring("YWxpY2U6Y29ycmVjdCBob3JzZQ=="))
}

func TestNodeAuthFile(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "node", Password: "node-secret"})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.write(t, "auth.json", `{"auths":{"`+r.Host()+`":{"auth":"bm9kZTpub2RlLXNlY3JldA=="}}}`)
	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(err).NotTo(HaveOccurred())
	// Those of the request win, and are not made good by the node's.
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference, Credentials: registryauth.Credentials{Username: "x", Password: "y"}})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%v", err)
}

func TestMirrorsAndBlocking(t *testing.T) {
	t.Parallel()
	t.Run("mirror", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		mirror := fakeregistry.New(t, fakeregistry.Options{})
		p := mirror.Push(t, "cache/app", "v1", fakeregistry.Image{})
		n := newNode(t)
		n.write(t, "registries.conf", fmt.Sprintf("[[registry]]\nlocation=\"upstream.test/team\"\n[[registry.mirror]]\nlocation=%q\ninsecure=true\n", mirror.Host()+"/cache"))
		result, _, err := n.pull(t, manifestonly.Request{
			Name: "upstream.test/team/app:v1", Credentials: registryauth.Credentials{Username: "u", Password: "p"},
		})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(result.Pulled.Pinned().String()).To(Equal("upstream.test/team/app@"+p.Digest.String()), "the name stays the user's")
		for _, q := range mirror.Requests() {
			g.Expect(q.Auth).To(BeFalse(), "the mirror is not shown upstream's credentials")
		}
	})
	t.Run("blocked", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		r := fakeregistry.New(t, fakeregistry.Options{})
		p := r.Push(t, "app", "v1", fakeregistry.Image{})
		n := newNode(t)
		n.write(t, "registries.conf", fmt.Sprintf("[[registry]]\nlocation=%q\nblocked=true\n", r.Host()))
		_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unsupported), "%v", err)
		g.Expect(err).To(MatchError(ContainSubstring("blocked")))
		g.Expect(r.Requests()).To(BeEmpty())
	})
}

func TestNames(t *testing.T) {
	t.Parallel()
	t.Run("short names", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		first, second := fakeregistry.New(t, fakeregistry.Options{}), fakeregistry.New(t, fakeregistry.Options{})
		p := second.Push(t, "app", "v1", fakeregistry.Image{})
		n := newNode(t)
		n.write(t, "registries.conf", fmt.Sprintf("unqualified-search-registries=[%q,%q]\n", first.Host(), second.Host()))
		result, _, err := n.pull(t, manifestonly.Request{Name: "app:v1"})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(result.Pulled.Reference.String()).To(Equal(p.Reference))
		g.Expect(first.Requests()).NotTo(BeEmpty(), "asked in order")

		_, _, err = n.pull(t, manifestonly.Request{Name: "other:v1"})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)
	})
	t.Run("no search registry", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		_, _, err := newNode(t).pull(t, manifestonly.Request{Name: "app:v1"})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	})
	t.Run("insecure", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		r := fakeregistry.New(t, fakeregistry.Options{})
		r.Push(t, "app", "v1", fakeregistry.Image{})
		// Looked up, it is in 127.0.0.0/8.
		ref := strings.Replace(r.Host(), "127.0.0.1", "localhost", 1) + "/app:v1"
		_, _, err := newNode(t).pull(t, manifestonly.Request{Name: ref})
		g.Expect(err).NotTo(HaveOccurred())
	})
}
