package signing

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"time"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// certLife is how long Fulcio's certificates are valid. As in the real one they
// are long over when the image is pulled; Rekor's timestamp is what counts.
const certLife = 10 * time.Minute

// signedAgo is how long ago everything was signed.
const signedAgo = 24 * time.Hour

// oidIssuer is Fulcio's extension with the OIDC issuer (v2, a UTF8String).
var oidIssuer = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}

// Identity is whom an OIDC issuer says the signer is.
type Identity struct {
	// Issuer is the OIDC issuer's URL; Email the subject.
	Issuer, Email string
}

// Keyless is a Fulcio and a Rekor of the test: it signs as cosign does without a
// key pair. Two of them trust each other in nothing.
type Keyless struct {
	ca     *x509.Certificate
	caPEM  []byte
	fulcio *ecdsa.PrivateKey
	rekor  *ecdsa.PrivateKey
	at     time.Time
}

// NewKeyless makes the certificate authority and the log's key.
func NewKeyless(t TB) *Keyless {
	t.Helper()
	k := &Keyless{fulcio: newKey(t), rekor: newKey(t), at: time.Now().Add(-signedAgo)}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test fulcio"}, SerialNumber: big.NewInt(1),
		NotBefore: k.at.Add(-time.Hour), NotAfter: k.at.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.fulcio.PublicKey, k.fulcio)
	if err != nil {
		t.Fatalf("make certificate: %v", err)
	}
	if k.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatalf("parse certificate: %v", err)
	}
	k.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return k
}

// Sign returns a signature of somebody with a new key, the certificate and the
// log's signed timestamp.
func (k *Keyless) Sign(t TB, who Identity, c Claim) fakeregistry.Attachment {
	t.Helper()
	key := newKey(t)
	body, signature := signPayload(t, key, c)
	cert := k.certify(t, key, who)
	return attachment(body, signature, map[string]string{
		annotationCertificate: string(cert),
		annotationChain:       string(k.caPEM),
		annotationBundle:      string(k.timestamp(t, cert, signature, body)),
	})
}

// certify is what Fulcio does.
func (k *Keyless) certify(t TB, key *ecdsa.PrivateKey, who Identity) []byte {
	t.Helper()
	issuer, err := asn1.MarshalWithParams(who.Issuer, "utf8")
	if err != nil {
		t.Fatalf("encode issuer: %v", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		NotBefore:    k.at.Add(-time.Second), NotAfter: k.at.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		EmailAddresses:  []string{who.Email},
		ExtraExtensions: []pkix.Extension{{Id: oidIssuer, Value: issuer}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, k.ca, &key.PublicKey, k.fulcio)
	if err != nil {
		t.Fatalf("make certificate: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// timestamp is what Rekor does: a hashedrekord entry and its signed timestamp.
func (k *Keyless) timestamp(t TB, certOrKey, signature, body []byte) []byte {
	t.Helper()
	hash := sha256.Sum256(body)
	entry := encode(map[string]any{
		"apiVersion": "0.0.1", "kind": "hashedrekord",
		"spec": map[string]any{
			"data":      map[string]any{"hash": map[string]string{"algorithm": "sha256", "value": hex.EncodeToString(hash[:])}},
			"signature": map[string]any{"content": signature, "publicKey": map[string]any{"content": certOrKey}},
		},
	})
	id := sha256.Sum256(publicPEM(t, k.rekor))
	logged := map[string]any{"body": entry, "integratedTime": k.at.Unix(), "logIndex": 1, "logID": hex.EncodeToString(id[:])}
	return encode(map[string]any{"SignedEntryTimestamp": sign(t, k.rekor, encode(logged)), "Payload": logged})
}

// CA is Fulcio's certificate, PEM.
func (k *Keyless) CA() []byte { return k.caPEM }

// RekorKey is the log's public key, PEM.
func (k *Keyless) RekorKey(t TB) []byte {
	t.Helper()
	return publicPEM(t, k.rekor)
}

// Requirement is the sigstoreSigned entry of a policy that takes signatures of
// that identity alone, certified and logged here.
func (k *Keyless) Requirement(t TB, who Identity) Requirement {
	t.Helper()
	return sigstoreSigned(Requirement{
		"fulcio":             map[string]any{"caData": k.caPEM, "oidcIssuer": who.Issuer, "subjectEmail": who.Email},
		"rekorPublicKeyData": k.RekorKey(t),
	})
}

// Logged returns a signature made with a key pair, with a timestamp of
// this log, for a policy that has keyData and rekorPublicKeyData.
func (k *Keyless) Logged(t TB, s *Sigstore, c Claim) fakeregistry.Attachment {
	t.Helper()
	body, signature := signPayload(t, s.key, c)
	bundle := k.timestamp(t, s.PublicKey(t), signature, body)
	return attachment(body, signature, map[string]string{annotationBundle: string(bundle)})
}

// RequireLogged adds to a requirement that this log has the signature.
func (k *Keyless) RequireLogged(t TB, r Requirement) Requirement {
	t.Helper()
	r["rekorPublicKeyData"] = k.RekorKey(t)
	return r
}
