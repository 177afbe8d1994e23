package registry_test

import (
	"fmt"
	"net/http"
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

// TestNodeCredentialsInAnUntrustedNetwork has a pod's network where anyone may answer
// for a registry that is not verified: directly, and as an insecure mirror.
func TestNodeCredentialsInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	for name, conf := range map[string]string{
		"insecure registry": "",
		"insecure mirror":   "[[registry]]\nlocation=\"upstream.test\"\n[[registry.mirror]]\nlocation=%q\ninsecure=true\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{Username: "node", Password: "node-secret"})
			p := r.Push(t, "app", "v1", fakeregistry.Image{})
			n := newNode(t)
			ask := p.Reference
			if conf != "" {
				n.write(t, "registries.conf", fmt.Sprintf(conf, r.Host()))
				ask = "upstream.test/app:v1"
			}
			n.write(t, "auth.json", `{"auths":{"`+r.Host()+`":{"auth":"bm9kZTpub2RlLXNlY3JldA=="}}}`)

			_, _, err := n.pull(t, manifestonly.Request{Name: ask})
			g.Expect(err).NotTo(HaveOccurred(), "the host's network is trusted")
			g.Expect(r.Users()).To(ContainElement("node"))

			r.Forget()
			n.config.UntrustedNetwork = true
			_, _, err = n.pull(t, manifestonly.Request{Name: ask})
			g.Expect(err).To(HaveOccurred())
			g.Expect(r.Requests()).NotTo(BeEmpty(), "it was asked")
			g.Expect(r.Users()).NotTo(ContainElement("node"), "it was not shown who the node is")
		})
	}
}

func TestRequestCredentialsInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "pod", Password: "pod-secret"})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.config.UntrustedNetwork = true
	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference, Credentials: registryauth.Credentials{Username: "pod", Password: "pod-secret"}})
	g.Expect(err).NotTo(HaveOccurred(), "they are the pod's")

	n.config.RegistriesConf = n.write(t, "helper.conf", "credential-helpers=[\"nodewide\"]\n")
	r.Forget()
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unsupported), "%v", err)
	g.Expect(r.Requests()).To(BeEmpty())
}

// TestVerifiedRegistryInAnUntrustedNetwork: TLS says who answers, so nothing is withheld.
func TestVerifiedRegistryInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	address := outside(t)
	ca := fakeregistry.NewCA(t)
	r := fakeregistry.New(t, fakeregistry.Options{Listen: address + ":0", CA: ca, Username: "node", Password: "node-secret"})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	ca.WriteCertsD(t, n.config.CertsD, r.Host(), nil, "")
	n.config.UntrustedNetwork = true
	n.write(t, "auth.json", `{"auths":{"`+r.Host()+`":{"auth":"bm9kZTpub2RlLXNlY3JldA=="}}}`)
	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r.Users()).To(ContainElement("node"))
}

// TestStoredBlobsInAnUntrustedNetwork: a tenant answers for a private registry in the
// network of a pod and names what it has. That must not be taken from the store.
func TestStoredBlobsInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "private/app", "v1", fakeregistry.Image{})
	index := r.PushIndex(t, "private/app", "all", p.Entry("linux", "amd64", ""))
	n, store := newNode(t), &storetest.Memory{}
	pull := func(name string) error {
		r.Forget()
		_, err := manifestonly.Pull(t.Context(), manifestonly.Request{
			Name: name, Platform: imgspec.Platform{OS: "linux", Architecture: "amd64"},
		}, registry.New(n.config), store)
		return err
	}
	g.Expect(pull(index.Reference)).To(Succeed())
	g.Expect(pull(index.Reference)).To(Succeed())
	g.Expect(r.Asked(p.Digest.String())).To(BeFalse(), "in the host's network nothing is read twice")

	n.config.UntrustedNetwork = true
	for name, hidden := range map[string]fakeregistry.Match{
		index.Reference: fakeregistry.Manifest(p.Digest.String()),
		p.Reference:     fakeregistry.Blob(p.ConfigDigest.String()),
	} {
		r.On(hidden, fakeregistry.Status(404, ""))
		g.Expect(errdefs.KindOf(pull(name))).To(Equal(errdefs.NotFound), name)
		r.Heal()
		g.Expect(pull(name)).To(Succeed(), "who has it all may serve it")
	}
}

// TestNoPlainTokenServiceInAnUntrustedNetwork: a registry that is verified sends its
// clients to a token service by plain HTTP, which the tenant can listen to.
func TestNoPlainTokenServiceInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	ca := fakeregistry.NewCA(t)
	r := fakeregistry.New(t, fakeregistry.Options{Listen: outside(t) + ":0", CA: ca, Username: "node", Password: "node-secret"})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	tokens := fakeregistry.New(t, fakeregistry.Options{Username: "node", Password: "node-secret"})
	r.On(fakeregistry.Ping, func(w http.ResponseWriter, _ *http.Request, _ *fakeregistry.Registry) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL()+`/token",service="tokens"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	n := newNode(t)
	ca.WriteCertsD(t, n.config.CertsD, r.Host(), nil, "")
	n.write(t, "auth.json", `{"auths":{"`+r.Host()+`":{"auth":"bm9kZTpub2RlLXNlY3JldA=="}}}`)

	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(err).To(HaveOccurred(), "its token is none")
	g.Expect(tokens.Users()).To(ContainElement("node"), "as CRI-O does, in the host's network")
	tokens.Forget()
	n.config.UntrustedNetwork = true
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unsupported), "%v", err)
	g.Expect(tokens.Requests()).To(BeEmpty())
}
