package registry_test

import (
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// secure is a registry as in production: TLS, tokens, two users with one repository.
func secure(t *testing.T) *fakeregistry.Registry {
	t.Helper()
	return fakeregistry.New(t, fakeregistry.Options{
		CA: fakeregistry.NewCA(t), Bearer: true,
		Users: []fakeregistry.User{{Name: "alice", Password: "a-secret"}, {Name: "bob", Password: "b-secret"}},
	})
}

var (
	alice = registryauth.Credentials{Username: "alice", Password: "a-secret"}
	bob   = registryauth.Credentials{Username: "bob", Password: "b-secret"}
)

// The requests of each kind of pull, one by one: no more, no less, no other.
func TestRequestsOfAPull(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "plain", fakeregistry.Image{Layers: layers()})
	index := r.PushIndex(t, "team/app", "multi", p.Entry("linux", "amd64", ""))
	n, warm := newNode(t), &storetest.Memory{}
	ping, token := "GET /v2/", "GET /token"
	manifest := func(name string) string { return "GET /v2/team/app/manifests/" + name }
	config := "GET /v2/team/app/blobs/" + p.ConfigDigest.String()
	pull := func(name string, store manifestonly.Writer) []string {
		t.Helper()
		r.Forget()
		result, err := manifestonly.Pull(t.Context(), manifestonly.Request{
			Name: name, Credentials: alice, Platform: imgspec.Platform{OS: "linux", Architecture: "amd64"},
		}, registry.New(n.config), store)
		g.Expect(err).NotTo(HaveOccurred())
		bytes := int64(0)
		for _, q := range r.Requests() {
			if strings.HasPrefix(q.Path, "/v2/team/") {
				bytes += q.Bytes
			}
		}
		g.Expect(result.Stats).To(Equal(manifestonly.Stats{Requests: len(r.Requests()), Bytes: bytes}), "counted right")
		return r.Paths()
	}
	g.Expect(pull(p.Reference, &storetest.Memory{})).To(Equal([]string{ping, token, manifest("plain"), config}), "cold, by tag")
	g.Expect(pull(index.Reference, warm)).To(Equal([]string{ping, token, manifest("multi"), manifest(p.Digest.String()), config}), "cold, through an index")

	g.Expect(pull(p.Reference, warm)).To(Equal([]string{ping, token, manifest("plain")}), "warm, by tag")
	g.Expect(pull(index.Reference, warm)).To(Equal([]string{ping, token, manifest("multi")}), "warm, through an index")
	for _, q := range []fakeregistry.Pushed{p, index} {
		g.Expect(pull(q.Repository+"@"+q.Digest.String(), warm)).To(Equal([]string{ping, token, manifest(q.Digest.String())}), "warm, by digest: one authorised check")
	}
}

// What the store holds opens nothing to whom the registry refuses it.
func TestWarmPullIsStillAuthorised(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	n, store := newNode(t), &storetest.Memory{}
	_, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: p.Reference, Credentials: alice}, registry.New(n.config), store)
	g.Expect(err).NotTo(HaveOccurred())
	for _, name := range []string{p.Reference, p.Repository + "@" + p.Digest.String()} {
		for _, c := range []registryauth.Credentials{{}, {Username: "alice", Password: "wrong"}} {
			_, err = manifestonly.Pull(t.Context(), manifestonly.Request{Name: name, Credentials: c}, registry.New(n.config), store)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%v", err)
		}
	}
}

// One connection (after the ping) and one token serve a pull, and no other pull.
func TestConnectionsAndTokens(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	index := r.PushIndex(t, "team/app", "multi", p.Entry("linux", "amd64", ""))
	source := registry.New(newNode(t).config)
	used := map[int]string{}
	for i, c := range []registryauth.Credentials{alice, bob, alice} {
		r.Forget()
		_, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: index.Reference, Credentials: c}, source, &storetest.Memory{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.TokenRequests()).To(Equal(1))
		for j, q := range r.Requests() {
			g.Expect(used).NotTo(HaveKey(q.Conn), "pull %d goes over a connection of %s", i, used[q.Conn])
			g.Expect(q.User).To(BeElementOf("", c.Username))
			// containers/image leaves the body of the ping's 401 unread, so net/http
			// closes that connection; all the rest is one.
			g.Expect(q.Conn).To(Equal(r.Requests()[min(j, 1)].Conn), "%s", q.Path)
		}
		for _, q := range r.Requests() {
			used[q.Conn] = c.Username
		}
		g.Expect(r.Connections()).To(Equal(len(used)), "every connection was used")
	}
}
