package fakeregistry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certLife is how long the certificates of a test are valid, from an hour ago on.
const certLife = 24 * time.Hour

// CA is a certificate authority of the test.
type CA struct {
	// PEM is its certificate.
	PEM  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a certificate authority.
func NewCA(t TB) *CA {
	t.Helper()
	ca := &CA{}
	ca.cert = &x509.Certificate{
		Subject:      pkix.Name{CommonName: "test CA"},
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certLife),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, key := ca.sign(t, ca.cert)
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("parse certificate: %v", err)
	}
	ca.cert, ca.key = parsed, key
	ca.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return ca
}

// sign makes a key and a certificate of the template; of itself, when the CA has
// no key yet.
func (ca *CA) sign(t TB, template *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make key: %v", err)
	}
	signer := ca.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, signer)
	if err != nil {
		t.Fatalf("make certificate: %v", err)
	}
	return der, key
}

// issue makes a certificate for a name and addresses.
func (ca *CA) issue(t TB, name string, usage x509.ExtKeyUsage, addresses ...net.IP) (certPEM, keyPEM []byte) {
	t.Helper()
	der, key := ca.sign(t, &x509.Certificate{
		Subject:      pkix.Name{CommonName: name},
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		DNSNames: []string{name}, IPAddresses: addresses,
	})
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatalf("encode key: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// Client makes a client certificate, whose name is then in Request.ClientCert.
func (ca *CA) Client(t TB, name string) (certPEM, keyPEM []byte) {
	t.Helper()
	return ca.issue(t, name, x509.ExtKeyUsageClientAuth)
}

// server is the configuration of a server at an address.
func (ca *CA) server(t TB, address net.Addr, clients *CA) *tls.Config {
	t.Helper()
	ip := net.IPv4(127, 0, 0, 1)
	if tcp, ok := address.(*net.TCPAddr); ok {
		ip = tcp.IP
	}
	cert, err := tls.X509KeyPair(ca.issue(t, "localhost", x509.ExtKeyUsageServerAuth, ip))
	if err != nil {
		t.Fatalf("read key pair: %v", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if clients != nil {
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AddCert(clients.cert)
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config
}

// Pool is what a client trusts that trusts this CA alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// WriteCertsD writes the CA for a registry into a certs.d directory and, where
// clients is given, a client certificate in that name of the CA clients.
func (ca *CA) WriteCertsD(t TB, dir, host string, clients *CA, client string) {
	t.Helper()
	files := map[string][]byte{"ca.crt": ca.PEM}
	if clients != nil {
		files["client.cert"], files["client.key"] = clients.Client(t, client)
	}
	if err := os.MkdirAll(filepath.Join(dir, host), 0o700); err != nil {
		t.Fatalf("make certs.d: %v", err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, host, name), content, 0o600); err != nil {
			t.Fatalf("write certs.d: %v", err)
		}
	}
}
