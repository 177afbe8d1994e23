package policy

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/image"
	"github.com/containers/image/v5/oci/layout"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
)

const pinned = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func reference(t *testing.T, name string) types.ImageReference {
	t.Helper()
	ref, err := docker.ParseReference("//" + name)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return ref
}

func parse(t *testing.T, scopes map[string][]signing.Requirement) *signature.Policy {
	t.Helper()
	p, err := signature.NewPolicyFromBytes(signing.Policy(scopes))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return p
}

func TestRequiresSignature(t *testing.T) {
	t.Parallel()
	key := signing.NewSigstore(t)
	sigstore, simple := key.Requirement(t), signing.NewSimple(t).Requirement(t)
	accept, reject := signing.Accept(), signing.Reject()
	type scopes = map[string][]signing.Requirement
	for what, tt := range map[string]struct {
		policy scopes
		name   string
		want   bool
	}{
		"default accepts":           {scopes{"": {accept}}, "reg.example/team/app" + pinned, false},
		"default rejects":           {nil, "reg.example/team/app" + pinned, false},
		"default, signed":           {scopes{"": {simple}}, "reg.example/team/app" + pinned, true},
		"registry, sigstore":        {scopes{"": {accept}, "reg.example": {sigstore}}, "reg.example/team/app" + pinned, true},
		"another registry":          {scopes{"": {accept}, "reg.example": {sigstore}}, "other.example/team/app" + pinned, false},
		"namespace wins":            {scopes{"reg.example": {sigstore}, "reg.example/team": {accept}}, "reg.example/team/app" + pinned, false},
		"repository wins":           {scopes{"reg.example/team": {accept}, "reg.example/team/app": {simple}}, "reg.example/team/app" + pinned, true},
		"its neighbour":             {scopes{"reg.example/team": {accept}, "reg.example/team/app": {simple}}, "reg.example/team/apps" + pinned, false},
		"one tag":                   {scopes{"": {accept}, "reg.example/team/app:v1": {simple}}, "reg.example/team/app:v1", true},
		"another tag":               {scopes{"": {accept}, "reg.example/team/app:v1": {simple}}, "reg.example/team/app:v2", false},
		"wildcard":                  {scopes{"": {accept}, "*.example": {sigstore}}, "reg.example/team/app" + pinned, true},
		"accept and signed":         {scopes{"": {accept, sigstore}}, "reg.example/team/app" + pinned, true},
		"accept twice":              {scopes{"": {accept, accept}}, "reg.example/team/app" + pinned, false},
		"reject beside a signature": {scopes{"": {reject, simple}}, "reg.example/team/app" + pinned, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			NewWithT(t).Expect(RequiresSignature(t.Context(), parse(t, tt.policy), reference(t, tt.name))).To(Equal(tt.want))
		})
	}
	t.Run("another transport", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		ref, err := layout.ParseReference(t.TempDir() + ":app")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(RequiresSignature(t.Context(), parse(t, scopes{"reg.example": {simple}, "": {accept}}), ref)).To(BeFalse())
		g.Expect(RequiresSignature(t.Context(), parse(t, scopes{"reg.example": {accept}, "": {simple}}), ref)).To(BeTrue())
	})
}

// TestFactsOfRealImages walks images, signed and not, under policies that ask for
// signatures and that do not: what is signed is what was verified.
func TestFactsOfRealImages(t *testing.T) {
	t.Parallel()
	registry := fakeregistry.New(t, fakeregistry.Options{})
	key := signing.NewSimple(t)
	for what, tt := range map[string]struct {
		signed          bool
		require         signing.Requirement
		allowed, counts bool
	}{
		"signed, wanted":       {true, key.Requirement(t), true, true},
		"signed, not asked":    {true, signing.Accept(), true, false},
		"unsigned, wanted":     {false, key.Requirement(t), false, false},
		"unsigned, not asked":  {false, signing.Accept(), true, false},
		"signed by a stranger": {true, signing.NewSimple(t).Requirement(t), false, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			repository := map[bool]string{true: "team/signed", false: "team/unsigned"}[tt.signed]
			pushed := registry.Push(t, repository, "v1", fakeregistry.Image{})
			if tt.signed {
				registry.PutSignatures(repository, pushed.Digest, key.Sign(t, signing.Claim{Reference: pushed.Reference, Digest: pushed.Digest}))
			}
			dir := t.TempDir()
			g.Expect(os.WriteFile(filepath.Join(dir, "signed.yaml"), signing.RegistriesD(registry.Host(), registry.LookasideURL(), false), 0o600)).To(Succeed())
			sys := &types.SystemContext{RegistriesDirPath: dir, SystemRegistriesConfPath: os.DevNull, DockerInsecureSkipTLSVerify: types.OptionalBoolTrue}
			ref := reference(t, pushed.Repository+"@"+pushed.Digest.String())
			src, err := ref.NewImageSource(t.Context(), sys)
			g.Expect(err).NotTo(HaveOccurred())
			defer func() { _ = src.Close() }()
			p := parse(t, map[string][]signing.Requirement{registry.Host(): {tt.require}})
			pc, err := signature.NewPolicyContext(p)
			g.Expect(err).NotTo(HaveOccurred())
			allowed, err := pc.IsRunningImageAllowed(t.Context(), image.UnparsedInstance(src, nil))
			g.Expect(allowed).To(Equal(tt.allowed), "%v", err)
			if !allowed {
				return // and nothing more is asked
			}
			signed, err := RequiresSignature(t.Context(), p, ref)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(signed).To(Equal(tt.counts))
			both := Config{EncryptedSigned: Mandatory}
			g.Expect(both.Check(Facts{Layers: 1, Encrypted: 1, Signed: signed}) == nil).To(Equal(tt.counts))
		})
	}
}
