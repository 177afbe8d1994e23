package registry_test

import (
	"encoding/json"
	"slices"
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

func TestPolicy(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.write(t, "policy.json", `{"default":[{"type":"reject"}]}`)
	n.write(t, "policies/trusting.json", accept)
	n.write(t, "policies/broken.json", `{`)

	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
	g.Expect(errdefs.ToGRPC(err).Error()).To(ContainSubstring("SignatureValidationFailed"))
	g.Expect(r.Asked(p.ConfigDigest.String())).To(BeFalse(), "nothing is fetched on the word of a refused manifest")

	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference, Namespace: "trusting"})
	g.Expect(err).NotTo(HaveOccurred())
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference, Namespace: "unheard-of"})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference, Namespace: "broken"})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal), "%v", err)
	for _, namespace := range []string{"../policies/trusting", "..", "/trusting"} {
		_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference, Namespace: namespace})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%s: %v", namespace, err)
	}
}

// Sigstore attachments are fetched where registries.d asks for them, and come
// out in the format that containers/image stores.
func TestSigstoreSignaturesAreKept(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{Layers: layers()})
	payload := []byte(`{"critical":{}}`)
	tag := strings.Replace(p.Digest.String(), ":", "-", 1) + ".sig"
	r.Push(t, "app", tag, fakeregistry.Image{Layers: [][]byte{payload}, Edit: func(m *imgspec.Manifest) {
		m.Layers[0].MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
		m.Layers[0].Annotations = map[string]string{"dev.cosignproject.cosign/signature": "c2ln"}
	}})
	n := newNode(t)
	n.write(t, "registries.d/sigstore.yaml", "docker:\n  "+r.Host()+":\n    use-sigstore-attachments: true\n")

	remote, err := registry.New(n.config).Open(t.Context(), storetest.Ref(t, p.Reference), manifestonly.Access{})
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(remote.Close()).To(Succeed()) }()
	signatures, err := remote.Verify(t.Context(), storetest.Digest(t, p.Digest.String()))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(signatures).To(HaveLen(1))
	body, ok := strings.CutPrefix(string(signatures[0]), "\x00sigstore-json\n")
	g.Expect(ok).To(BeTrue())
	var decoded struct {
		MIMEType    string            `json:"mimeType"`
		Payload     []byte            `json:"payload"`
		Annotations map[string]string `json:"annotations"`
	}
	g.Expect(json.Unmarshal([]byte(body), &decoded)).To(Succeed())
	g.Expect(decoded.Payload).To(Equal(payload))
	g.Expect(decoded.Annotations).To(HaveKeyWithValue("dev.cosignproject.cosign/signature", "c2ln"))
	g.Expect(slices.ContainsFunc(p.Layers, func(d digest.Digest) bool { return r.Asked(d.String()) })).To(BeFalse())
}

func TestConfigCannotNameALayer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	// A manifest whose config is one of its own layers.
	p := r.Push(t, "app", "v1", fakeregistry.Image{Layers: layers(), Edit: func(m *imgspec.Manifest) {
		m.Config.Digest, m.Config.Size = m.Layers[0].Digest, m.Layers[0].Size
	}})
	_, _, err := newNode(t).pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotAnImage), "%v", err)
	for _, l := range p.Layers {
		g.Expect(r.Asked(l.String())).To(BeFalse())
	}

	remote, err := registry.New(newNode(t).config).Open(t.Context(), storetest.Ref(t, p.Reference), manifestonly.Access{})
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(remote.Close()).To(Succeed()) }()
	r.Forget()
	_, err = remote.Config(t.Context(), manifestonly.ConfigRef{})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
	g.Expect(r.Requests()).To(BeEmpty())
}
