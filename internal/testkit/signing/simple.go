package signing

import (
	"bytes"
	"crypto"

	"golang.org/x/crypto/openpgp"        //nolint:staticcheck // what containers/image itself verifies with, without CGO
	"golang.org/x/crypto/openpgp/packet" //nolint:staticcheck // as above
)

// keyBits is short: a test's key need not last.
const keyBits = 2048

// Simple signs in the way of containers-signature(5): JSON in a signed OpenPGP
// message.
type Simple struct{ entity *openpgp.Entity }

// NewSimple makes an OpenPGP key.
func NewSimple(t TB) *Simple {
	t.Helper()
	entity, err := openpgp.NewEntity("Husk Test", "", "test@husk.example", config())
	if err != nil {
		t.Fatalf("make key: %v", err)
	}
	return &Simple{entity}
}

func config() *packet.Config {
	return &packet.Config{DefaultHash: crypto.SHA256, RSABits: keyBits}
}

// Sign returns a signature as a lookaside storage serves it.
func (s *Simple) Sign(t TB, c Claim) []byte {
	t.Helper()
	var signed bytes.Buffer
	w, err := openpgp.Sign(&signed, s.entity, nil, config())
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	if _, err := w.Write(payload("atomic container signature", c)); err != nil {
		t.Fatalf("sign: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("sign: %v", err)
	}
	return signed.Bytes()
}

// PublicKey is the key that a policy's keyPath may name, an OpenPGP key ring.
func (s *Simple) PublicKey(t TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.entity.Serialize(&b); err != nil {
		t.Fatalf("encode key: %v", err)
	}
	return b.Bytes()
}

// Requirement is the signedBy entry of a policy that takes this key alone.
func (s *Simple) Requirement(t TB) Requirement {
	t.Helper()
	return Requirement{"type": "signedBy", "keyType": "GPGKeys", "keyData": s.PublicKey(t)}
}
