package layerpull

import (
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/imageref"
)

// TestNodeCredentialsInAnUntrustedNetwork: an insecure registry in a pod's network is
// whoever the pod's owner says it is.
func TestNodeCredentialsInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "node", Password: "node-secret"})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	ref, err := imageref.ParseReference(p.Repository + "@" + p.Digest.String())
	g.Expect(err).NotTo(HaveOccurred())
	cfg := (&testRegistry{host: r.Host()}).config(t)
	writeFile(t, cfg.AuthFile, `{"auths":{"`+r.Host()+`":{"auth":"bm9kZTpub2RlLXNlY3JldA=="}}}`)
	for _, untrusted := range []bool{false, true} {
		cfg.UntrustedNetwork = untrusted
		r.Forget()
		src, err := openSource(t.Context(), ref, cfg)
		g.Expect(r.Requests()).NotTo(BeEmpty())
		if untrusted {
			g.Expect(err).To(HaveOccurred())
			g.Expect(r.Users()).NotTo(ContainElement("node"), "it was not shown who the node is")
			continue
		}
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.Users()).To(ContainElement("node"))
		src.close()
	}
}
