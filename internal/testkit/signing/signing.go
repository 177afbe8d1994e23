// Package signing makes real image signatures for tests, without a network, and
// the policy that accepts them: simple signing with an OpenPGP key, sigstore with
// a key pair, and sigstore with Fulcio certificates and Rekor timestamps of the
// test's own. Every signer can lie about what it signs.
package signing

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// Claim is what a signature says: this manifest is the image of that name.
type Claim struct {
	// Reference with a tag, "registry/repository:tag".
	Reference string
	// Digest of the manifest or index.
	Digest digest.Digest
}

// Requirement is one entry of a policy.json.
type Requirement map[string]any

// Accept is the requirement that accepts everything.
func Accept() Requirement { return Requirement{"type": "insecureAcceptAnything"} }

// Reject is the requirement that accepts nothing.
func Reject() Requirement { return Requirement{"type": "reject"} }

// WithIdentity returns a copy that takes signatures for another name than that of
// the pulled image, for mirrors: {"type":"exactRepository","dockerRepository":...}
// and the like (containers-policy.json(5)).
func (r Requirement) WithIdentity(identity map[string]string) Requirement {
	other := maps.Clone(r)
	other["signedIdentity"] = identity
	return other
}

// Policy is a policy.json: the requirements by scope of the docker transport, ""
// being the default. Without a default everything else is refused.
func Policy(scopes map[string][]Requirement) []byte {
	docker := map[string][]Requirement{}
	maps.Copy(docker, scopes)
	fallback := docker[""]
	delete(docker, "")
	if fallback == nil {
		fallback = []Requirement{Reject()}
	}
	return encode(map[string]any{"default": fallback, "transports": map[string]any{"docker": docker}})
}

// RegistriesD is a registries.d file for one scope ("registry/repository" or a
// parent; "" for all): where its simple signatures are ("" for nowhere) and
// whether it has sigstore attachments.
func RegistriesD(scope, lookaside string, attachments bool) []byte {
	var b strings.Builder
	if scope == "" {
		b.WriteString("default-docker:\n")
	} else {
		fmt.Fprintf(&b, "docker:\n  %s:\n", scope)
	}
	if lookaside != "" {
		fmt.Fprintf(&b, "    lookaside: %s\n", lookaside)
	}
	fmt.Fprintf(&b, "    use-sigstore-attachments: %t\n", attachments)
	return []byte(b.String())
}

// payload is what is signed (containers-signature(5), and cosign's same format).
func payload(kind string, c Claim) []byte {
	return encode(map[string]any{
		"critical": map[string]any{
			"type":     kind,
			"image":    map[string]string{"docker-manifest-digest": c.Digest.String()},
			"identity": map[string]string{"docker-reference": c.Reference},
		},
		"optional": map[string]any{"creator": "husk testkit", "timestamp": time.Now().Unix()},
	})
}

// encode is JSON with sorted keys and no spaces. For what is signed here, without
// floats and with plain strings, that is the canonical form (RFC 8785).
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // maps of strings always encode
	}
	return b
}

// TB is what making keys needs of a test.
type TB = fakeregistry.TB
