package signing_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/image"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
)

// verify asks containers/image whether a policy accepts what the registry serves.
func verify(t *testing.T, reference string, policy, registriesD []byte) error {
	t.Helper()
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.WriteFile(filepath.Join(dir, "test.yaml"), registriesD, 0o600)).To(Succeed())
	conf := filepath.Join(dir, "registries.conf")
	g.Expect(os.WriteFile(conf, nil, 0o600)).To(Succeed())
	sys := &types.SystemContext{
		RegistriesDirPath: dir, SystemRegistriesConfPath: conf, SystemRegistriesConfDirPath: dir,
		DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, AuthFilePath: filepath.Join(dir, "none.json"),
	}
	parsed, err := signature.NewPolicyFromBytes(policy)
	g.Expect(err).NotTo(HaveOccurred(), "%s", policy)
	allowed, err := signature.NewPolicyContext(parsed)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(allowed.Destroy()).To(Succeed()) }()
	ref, err := docker.ParseReference("//" + reference)
	g.Expect(err).NotTo(HaveOccurred())
	src, err := ref.NewImageSource(t.Context(), sys)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(src.Close()).To(Succeed()) }()
	accepted, err := allowed.IsRunningImageAllowed(t.Context(), image.UnparsedInstance(src, nil))
	if err == nil {
		g.Expect(accepted).To(BeTrue())
	}
	return err
}

var alice = signing.Identity{Issuer: "https://issuer.example", Email: "alice@husk.example"}

// scheme is one way to sign: what to serve for a claim, and the policy.
type scheme struct {
	// serve puts the right signature, or one of another key, next to the image.
	serve  func(t *testing.T, r *fakeregistry.Registry, d digest.Digest, claim signing.Claim, wrongKey bool)
	policy func(t *testing.T) signing.Requirement
}

func schemes(t *testing.T) map[string]scheme {
	simple, otherSimple := signing.NewSimple(t), signing.NewSimple(t)
	key, otherKey := signing.NewSigstore(t), signing.NewSigstore(t)
	keyless, otherKeyless := signing.NewKeyless(t), signing.NewKeyless(t)
	attach := func(sign func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment) func(*testing.T, *fakeregistry.Registry, digest.Digest, signing.Claim, bool) {
		return func(t *testing.T, r *fakeregistry.Registry, d digest.Digest, c signing.Claim, wrong bool) {
			r.Attach(t, "team/app", d, sign(t, c, wrong))
		}
	}
	return map[string]scheme{
		"simple": {
			serve: func(t *testing.T, r *fakeregistry.Registry, d digest.Digest, c signing.Claim, wrong bool) {
				signer := map[bool]*signing.Simple{false: simple, true: otherSimple}[wrong]
				r.PutSignatures("team/app", d, signer.Sign(t, c))
			},
			policy: func(t *testing.T) signing.Requirement { return simple.Requirement(t) },
		},
		"sigstore": {
			serve: attach(func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment {
				return map[bool]*signing.Sigstore{false: key, true: otherKey}[wrong].Sign(t, c)
			}),
			policy: func(t *testing.T) signing.Requirement { return key.Requirement(t) },
		},
		"sigstore and rekor": {
			serve: attach(func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment {
				return map[bool]*signing.Keyless{false: keyless, true: otherKeyless}[wrong].Logged(t, key, c)
			}),
			policy: func(t *testing.T) signing.Requirement { return keyless.RequireLogged(t, key.Requirement(t)) },
		},
		"fulcio and rekor": {
			serve: attach(func(t *testing.T, c signing.Claim, wrong bool) fakeregistry.Attachment {
				return map[bool]*signing.Keyless{false: keyless, true: otherKeyless}[wrong].Sign(t, alice, c)
			}),
			policy: func(t *testing.T) signing.Requirement { return keyless.Requirement(t, alice) },
		},
	}
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	for name, s := range schemes(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
			right := signing.Claim{Reference: p.Reference, Digest: p.Digest}
			policy := signing.Policy(map[string][]signing.Requirement{r.Host(): {s.policy(t)}})
			where := signing.RegistriesD(r.Host(), r.LookasideURL(), true)

			g.Expect(verify(t, p.Reference, policy, where)).NotTo(Succeed(), "missing")
			s.serve(t, r, p.Digest, right, true)
			g.Expect(verify(t, p.Reference, policy, where)).NotTo(Succeed(), "wrong key")
			s.serve(t, r, p.Digest, signing.Claim{Reference: r.Host() + "/team/other:v1", Digest: p.Digest}, false)
			g.Expect(verify(t, p.Reference, policy, where)).NotTo(Succeed(), "signed for another name")
			s.serve(t, r, p.Digest, signing.Claim{Reference: p.Reference, Digest: digest.FromString("other")}, false)
			g.Expect(verify(t, p.Reference, policy, where)).NotTo(Succeed(), "signed for another image")
			s.serve(t, r, p.Digest, right, false)
			g.Expect(verify(t, p.Reference, policy, where)).To(Succeed(), "accepted")
			g.Expect(verify(t, p.Reference, policy, signing.RegistriesD("", "", false))).NotTo(Succeed(), "registries.d names no signatures")
			g.Expect(verify(t, p.Reference, signing.Policy(nil), where)).NotTo(Succeed(), "rejected whoever signed it")
		})
	}
}

func TestKeylessIdentity(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	keyless := signing.NewKeyless(t)
	policy := signing.Policy(map[string][]signing.Requirement{"": {keyless.Requirement(t, alice)}})
	where := signing.RegistriesD("", "", true)
	for who, want := range map[signing.Identity]string{
		{Issuer: alice.Issuer, Email: "mallory@husk.example"}:          "Required email",
		{Issuer: "https://mallory.example", Email: alice.Email}:        "Unexpected Fulcio OIDC issuer",
		{Issuer: "https://issuer.example/", Email: "bob@husk.example"}: "Unexpected Fulcio OIDC issuer",
	} {
		r.Attach(t, "team/app", p.Digest, keyless.Sign(t, who, signing.Claim{Reference: p.Reference, Digest: p.Digest}))
		g.Expect(verify(t, p.Reference, policy, where)).To(MatchError(ContainSubstring(want)))
	}
}

// A mirror's name is not the name that was signed; the policy may say whose it is.
func TestWithIdentity(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	signer := signing.NewSimple(t)
	r.PutSignatures("team/app", p.Digest, signer.Sign(t, signing.Claim{Reference: "hub.example/team/app:v1", Digest: p.Digest}))
	plain := signer.Requirement(t)
	mapped := plain.WithIdentity(map[string]string{"type": "exactRepository", "dockerRepository": "hub.example/team/app"})
	where := signing.RegistriesD("", r.LookasideURL(), false)
	policy := func(r signing.Requirement) []byte { return signing.Policy(map[string][]signing.Requirement{"": {r}}) }
	g.Expect(verify(t, p.Reference, policy(plain), where)).NotTo(Succeed())
	g.Expect(verify(t, p.Reference, policy(mapped), where)).To(Succeed())
}

func TestPolicyScopes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	where := signing.RegistriesD("", r.LookasideURL(), false)
	for scope, want := range map[string]bool{"": true, r.Host() + "/team": true, r.Host() + "/other": false} {
		policy := signing.Policy(map[string][]signing.Requirement{scope: {signing.Accept()}})
		g.Expect(json.Valid(policy)).To(BeTrue())
		g.Expect(verify(t, p.Reference, policy, where) == nil).To(Equal(want), scope)
	}
}

// Push goes over the wire, as to a registry that is not of the test.
func TestPush(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	key := signing.NewSigstore(t)
	policy := signing.Policy(map[string][]signing.Requirement{"": {key.Requirement(t)}})
	where := signing.RegistriesD("", "", true)
	g.Expect(verify(t, p.Reference, policy, where)).NotTo(Succeed())
	signature := key.Sign(t, signing.Claim{Reference: p.Reference, Digest: p.Digest})
	g.Expect(signing.Push(t.Context(), p.Repository, p.Digest, signature)).To(Succeed())
	g.Expect(verify(t, p.Reference, policy, where)).To(Succeed())
}
