package registry_test

import (
	"context"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// warmStore holds what was pulled into it, like a real store.
type warmStore struct {
	*storetest.Memory
	blobs map[string][]byte
}

func newWarmStore() *warmStore { return &warmStore{&storetest.Memory{}, map[string][]byte{}} }

func (w *warmStore) keep(img manifestonly.Image) {
	repository := img.Pulled.Reference.Repository() + "@"
	w.blobs[repository+img.ConfigDigest.String()] = img.Config
	for _, b := range append([]manifestonly.Blob{img.Manifest}, img.Indexes...) {
		w.blobs[repository+b.Digest.String()] = b.Bytes
	}
}

func (w *warmStore) Blob(_ context.Context, repository string, d digest.Digest) ([]byte, error) {
	if b, ok := w.blobs[repository+"@"+d.String()]; ok {
		return b, nil
	}
	return nil, errdefs.New(errdefs.NotFound, "read blob", nil)
}

// secure is a registry as in production: TLS, tokens, two users with one repository.
func secure(t *testing.T) *fakeregistry.Registry {
	t.Helper()
	return fakeregistry.New(t, fakeregistry.Options{
		CA: fakeregistry.NewCA(t), Bearer: true,
		Users: []fakeregistry.User{{Name: "alice", Password: "a-secret"}, {Name: "bob", Password: "b-secret"}},
	})
}

var (
	alice = manifestonly.Credentials{Username: "alice", Password: "a-secret"}
	bob   = manifestonly.Credentials{Username: "bob", Password: "b-secret"}
)

// The requests of each kind of pull, one by one: no more, no less, no other.
func TestRequestsOfAPull(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "plain", fakeregistry.Image{Layers: layers()})
	index := r.PushIndex(t, "team/app", "multi", p.Entry("linux", "amd64", ""))
	n, store := newNode(t), newWarmStore()
	ping, token := "GET /v2/", "GET /token"
	manifest := func(name string) string { return "GET /v2/team/app/manifests/" + name }
	config := "GET /v2/team/app/blobs/" + p.ConfigDigest.String()
	pull := func(name string) []string {
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
	g.Expect(pull(p.Reference)).To(Equal([]string{ping, token, manifest("plain"), config}), "cold, by tag")
	g.Expect(pull(index.Reference)).To(Equal([]string{ping, token, manifest("multi"), manifest(p.Digest.String()), config}), "cold, through an index")

	for _, name := range []string{p.Reference, index.Reference} {
		img, _, err := manifestonly.Fetch(t.Context(), manifestonly.Request{Name: name, Credentials: alice}, registry.New(n.config), nil)
		g.Expect(err).NotTo(HaveOccurred())
		store.keep(img)
	}
	g.Expect(pull(p.Reference)).To(Equal([]string{ping, token, manifest("plain")}), "warm, by tag")
	g.Expect(pull(index.Reference)).To(Equal([]string{ping, token, manifest("multi")}), "warm, through an index")
	for _, q := range []fakeregistry.Pushed{p, index} {
		g.Expect(pull(q.Repository+"@"+q.Digest.String())).To(Equal([]string{ping, token, manifest(q.Digest.String())}), "warm, by digest: one authorised check")
	}
}

// What the store holds opens nothing to whom the registry refuses it.
func TestWarmPullIsStillAuthorised(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	n, store := newNode(t), newWarmStore()
	img, _, err := manifestonly.Fetch(t.Context(), manifestonly.Request{Name: p.Reference, Credentials: alice}, registry.New(n.config), nil)
	g.Expect(err).NotTo(HaveOccurred())
	store.keep(img)
	for _, name := range []string{p.Reference, p.Repository + "@" + p.Digest.String()} {
		for _, c := range []manifestonly.Credentials{{}, {Username: "alice", Password: "wrong"}} {
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
	for i, c := range []manifestonly.Credentials{alice, bob, alice} {
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
