package registry_test

import (
	"fmt"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
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
	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference, Credentials: manifestonly.Credentials{Username: "pod", Password: "pod-secret"}})
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
