package policy

import (
	"context"
	"strings"
	"testing"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/signature"

	"github.com/husk-cri/husk/internal/testkit/signing"
)

// unsigned is an image without signatures.
type unsigned struct{ nameOnly }

// Manifest is any.
func (unsigned) Manifest(context.Context) ([]byte, string, error) {
	return []byte(`{"schemaVersion":2}`), "application/vnd.oci.image.manifest.v1+json", nil
}

// Signatures are none.
func (unsigned) Signatures(context.Context) ([][]byte, error) { return nil, nil }

// FuzzRequiresSignature: under no policy that parses does an image count as signed that
// the policy accepts without a signature.
func FuzzRequiresSignature(f *testing.F) {
	const name = "reg.example/team/app" + pinned
	for _, scope := range []string{"", "reg.example", "reg.example/team/app", "*.example"} {
		for _, r := range []signing.Requirement{signing.Accept(), signing.Reject()} {
			f.Add(signing.Policy(map[string][]signing.Requirement{scope: {r}, "": {signing.Accept()}}), name)
		}
	}
	f.Add([]byte(`{"default":[{"type":"insecureAcceptAnything"},{"type":"signedBy","keyType":"GPGKeys","keyData":"AAAA"}]}`), name)
	f.Add([]byte(`{"default":[{"type":"sigstoreSigned","keyData":"AAAA"}],"transports":{"docker":{"reg.example":[{"type":"insecureAcceptAnything"}]}}}`), name)
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		if strings.Contains(strings.ToLower(string(data)), "path") { // a file that blocks is not what is tested
			return
		}
		p, err := signature.NewPolicyFromBytes(data)
		if err != nil {
			return
		}
		ref, err := docker.ParseReference("//" + name)
		if err != nil {
			return
		}
		required, err := RequiresSignature(t.Context(), p, ref)
		if err != nil || !required {
			return
		}
		pc, err := signature.NewPolicyContext(p)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = pc.Destroy() }()
		if allowed, _ := pc.IsRunningImageAllowed(t.Context(), unsigned{nameOnly{ref}}); allowed {
			t.Errorf("signed by %s, and accepted without a signature", data)
		}
	})
}
