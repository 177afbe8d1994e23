package registry_test

import (
	"fmt"
	"maps"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// scheme is one way to sign images.
type scheme struct {
	require signing.Requirement
	// sign puts a signature next to the manifest, of the right or of another key.
	sign func(t *testing.T, r *fakeregistry.Registry, claim signing.Claim, at digest.Digest, wrongKey bool)
}

var signer = signing.Identity{Issuer: "https://issuer.example", Email: "alice@husk.example"}

func schemes(t *testing.T) map[string]scheme {
	t.Helper()
	simple, otherSimple := signing.NewSimple(t), signing.NewSimple(t)
	key, otherKey := signing.NewSigstore(t), signing.NewSigstore(t)
	keyless, otherKeyless := signing.NewKeyless(t), signing.NewKeyless(t)
	attached := func(make func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment) func(*testing.T, *fakeregistry.Registry, signing.Claim, digest.Digest, bool) {
		return func(t *testing.T, r *fakeregistry.Registry, c signing.Claim, at digest.Digest, wrong bool) {
			t.Helper()
			r.Attach(t, "team/app", at, make(t, c, wrong))
		}
	}
	return map[string]scheme{
		"simple signing": {simple.Requirement(t), func(t *testing.T, r *fakeregistry.Registry, c signing.Claim, at digest.Digest, wrong bool) {
			t.Helper()
			r.PutSignatures("team/app", at, map[bool]*signing.Simple{false: simple, true: otherSimple}[wrong].Sign(t, c))
		}},
		"sigstore with a key": {key.Requirement(t), attached(func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment {
			t.Helper()
			return map[bool]*signing.Sigstore{false: key, true: otherKey}[wrong].Sign(t, c)
		})},
		"sigstore with a key, logged in Rekor": {keyless.RequireLogged(t, key.Requirement(t)), attached(func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment {
			t.Helper()
			return map[bool]*signing.Keyless{false: keyless, true: otherKeyless}[wrong].Logged(t, key, c)
		})},
		"Fulcio and Rekor": {keyless.Requirement(t, signer), attached(func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment {
			t.Helper()
			return map[bool]*signing.Keyless{false: keyless, true: otherKeyless}[wrong].Sign(t, signer, c)
		})},
	}
}

// signed makes a node that wants signatures for everything of the registry.
func signed(t *testing.T, r *fakeregistry.Registry, scope string, want signing.Requirement) *node {
	t.Helper()
	n := newNode(t)
	n.write(t, "policy.json", string(signing.Policy(map[string][]signing.Requirement{scope: {want}})))
	n.write(t, "registries.d/signed.yaml", string(signing.RegistriesD(scope, r.LookasideURL(), true)))
	return n
}

func TestRealSignatures(t *testing.T) {
	t.Parallel()
	for title, s := range schemes(t) {
		for _, multi := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, index %t", title, multi), func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				r := fakeregistry.New(t, fakeregistry.Options{})
				p := r.Push(t, "team/app", "v1", fakeregistry.Image{Layers: layers()})
				name := p.Reference
				if multi { // containers/image wants the instance signed, by the index's name
					name = r.PushIndex(t, "team/app", "multi", p.Entry("linux", "amd64", "")).Reference
				}
				n := signed(t, r, r.Host(), s.require)
				right := signing.Claim{Reference: name, Digest: p.Digest}
				refused := func(why string) {
					t.Helper()
					r.Forget()
					_, _, err := n.pull(t, manifestonly.Request{Name: name})
					g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%s: %v", why, err)
					g.Expect(r.Asked(p.ConfigDigest.String())).To(BeFalse(), "nothing is fetched on the word of a refused manifest")
				}
				refused("missing")
				s.sign(t, r, right, p.Digest, true)
				refused("wrong key")
				s.sign(t, r, signing.Claim{Reference: r.Host() + "/team/other:v1", Digest: p.Digest}, p.Digest, false)
				refused("signed for another name")
				s.sign(t, r, signing.Claim{Reference: name, Digest: digest.FromString("another")}, p.Digest, false)
				refused("signed for another image")

				s.sign(t, r, right, p.Digest, false)
				_, _, err := n.pull(t, manifestonly.Request{Name: name})
				g.Expect(err).NotTo(HaveOccurred(), "accepted")
				_, _, err = n.pull(t, manifestonly.Request{Name: p.Repository + "@" + p.Digest.String()})
				g.Expect(err).NotTo(HaveOccurred(), "accepted by digest")
				for _, l := range p.Layers {
					g.Expect(r.Asked(l.String())).To(BeFalse())
				}

				// A namespace's policy stands in place of the node's.
				n.write(t, "policies/strict.json", string(signing.Policy(nil)))
				_, _, err = n.pull(t, manifestonly.Request{Name: name, Namespace: "strict"})
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
				s.sign(t, r, right, p.Digest, true)
				n.write(t, "policies/lax.json", accept)
				_, _, err = n.pull(t, manifestonly.Request{Name: name, Namespace: "lax"})
				g.Expect(err).NotTo(HaveOccurred())
			})
		}
	}
}

// A manifest that comes from the store is checked by the policy like one that was
// fetched, and costs no request for it.
func TestPolicyOfAWarmPull(t *testing.T) {
	t.Parallel()
	for title, s := range schemes(t) {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
			index := r.PushIndex(t, "team/app", "multi", p.Entry("linux", "amd64", ""))
			req := manifestonly.Request{Name: index.Reference, Platform: imgspec.Platform{OS: "linux", Architecture: "amd64"}}
			n, store := signed(t, r, r.Host(), s.require), &storetest.Memory{}
			s.sign(t, r, signing.Claim{Reference: index.Reference, Digest: p.Digest}, p.Digest, false)
			img, _, err := manifestonly.Fetch(t.Context(), req, registry.New(n.config), store)
			g.Expect(err).NotTo(HaveOccurred())
			_, err = store.Put(t.Context(), img)
			g.Expect(err).NotTo(HaveOccurred())

			r.Forget()
			warm, _, err := manifestonly.Fetch(t.Context(), req, registry.New(n.config), store)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(warm.Signatures).To(Equal(img.Signatures))
			g.Expect(r.Asked("/manifests/" + p.Digest.String())).To(BeFalse())
			g.Expect(r.Asked(p.ConfigDigest.String())).To(BeFalse())

			s.sign(t, r, signing.Claim{Reference: index.Reference, Digest: p.Digest}, p.Digest, true)
			_, _, err = manifestonly.Fetch(t.Context(), req, registry.New(n.config), store)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
		})
	}
}

// What a mirror serves must be signed as what it stands for.
func TestSignatureOfAMirroredImage(t *testing.T) {
	t.Parallel()
	all := schemes(t)
	for title, s := range maps.All(all) {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
			// The policy names the upstream; the sigstore signatures are where the image
			// really came from, the simple ones at the upstream's lookaside storage.
			n := signed(t, r, "upstream.test", s.require)
			n.write(t, "registries.d/mirror.yaml", string(signing.RegistriesD(r.Host(), r.LookasideURL(), true)))
			n.write(t, "registries.conf", fmt.Sprintf("[[registry]]\nlocation=\"upstream.test\"\n[[registry.mirror]]\nlocation=%q\ninsecure=true\n", r.Host()))
			name := "upstream.test/team/app:v1"
			s.sign(t, r, signing.Claim{Reference: p.Reference, Digest: p.Digest}, p.Digest, false)
			_, _, err := n.pull(t, manifestonly.Request{Name: name})
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "signed as the mirror's: %v", err)
			s.sign(t, r, signing.Claim{Reference: name, Digest: p.Digest}, p.Digest, false)
			_, _, err = n.pull(t, manifestonly.Request{Name: name})
			g.Expect(err).NotTo(HaveOccurred())
		})
	}
}
