package signing

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// Annotations of a sigstore signature, as cosign names them.
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationBundle      = "dev.sigstore.cosign/bundle"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationChain       = "dev.sigstore.cosign/chain"
)

// Sigstore signs as cosign does with a key pair.
type Sigstore struct{ key *ecdsa.PrivateKey }

// NewSigstore makes a key pair.
func NewSigstore(t TB) *Sigstore {
	t.Helper()
	return &Sigstore{newKey(t)}
}

func newKey(t TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make key: %v", err)
	}
	return key
}

// Sign returns a signature to attach to the image.
func (s *Sigstore) Sign(t TB, c Claim) fakeregistry.Attachment {
	t.Helper()
	body, signature := signPayload(t, s.key, c)
	return attachment(body, signature, nil)
}

// PublicKey is the key that a policy's keyPath may name, PEM.
func (s *Sigstore) PublicKey(t TB) []byte {
	t.Helper()
	return publicPEM(t, s.key)
}

// Requirement is the sigstoreSigned entry of a policy that takes this key alone,
// whatever tag of the repository was signed, as cosign records none.
func (s *Sigstore) Requirement(t TB) Requirement {
	t.Helper()
	return sigstoreSigned(Requirement{"keyData": s.PublicKey(t)})
}

func sigstoreSigned(r Requirement) Requirement {
	r["type"] = "sigstoreSigned"
	r["signedIdentity"] = map[string]string{"type": "matchRepository"}
	return r
}

func signPayload(t TB, key *ecdsa.PrivateKey, c Claim) (body, signature []byte) {
	t.Helper()
	body = payload("cosign container image signature", c)
	return body, sign(t, key, body)
}

func sign(t TB, key *ecdsa.PrivateKey, body []byte) []byte {
	t.Helper()
	hash := sha256.Sum256(body)
	signature, err := ecdsa.SignASN1(rand.Reader, key, hash[:])
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	return signature
}

func attachment(body, signature []byte, more map[string]string) fakeregistry.Attachment {
	annotations := map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(signature)}
	for k, v := range more {
		annotations[k] = v
	}
	return fakeregistry.Attachment{Payload: body, Annotations: annotations}
}

func publicPEM(t TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatalf("encode key: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}
