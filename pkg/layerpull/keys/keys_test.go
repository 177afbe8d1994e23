package keys

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/containers/ocicrypt/keywrap/pkcs7"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/internal/testkit/keybroker"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// privateKey makes a keys directory with one private key, and returns its public key.
func privateKey(t *testing.T) (dir string, public []byte) {
	t.Helper()
	g := NewWithT(t)
	dir = filepath.Join(t.TempDir(), "ring")
	g.Expect(images.GenerateKeys(dir)).To(Succeed())
	public, err := os.ReadFile(filepath.Join(dir, images.PublicKeyFile))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Remove(filepath.Join(dir, images.PublicKeyFile))).To(Succeed())
	return dir, public
}

// certificate makes a keys directory with a certificate and its key.
func certificate(t *testing.T) (dir string, cert []byte) {
	t.Helper()
	g := NewWithT(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	g.Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "recipient"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	g.Expect(err).NotTo(HaveOccurred())
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private, err := x509.MarshalPKCS8PrivateKey(key)
	g.Expect(err).NotTo(HaveOccurred())
	dir = t.TempDir()
	both := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), cert...)
	g.Expect(os.WriteFile(filepath.Join(dir, "both.pem"), both, 0o600)).To(Succeed())
	return dir, cert
}

func TestPrivateKeysFromFiles(t *testing.T) {
	t.Parallel()
	plain := []byte("the plain text of a layer")
	jweDir, public := privateKey(t)
	certDir, cert := certificate(t)
	strangerDir, _ := privateKey(t)
	jweBlob, jweAnnotations, err := keybroker.Encrypt(plain, jwe.NewKeyWrapper(), map[string][][]byte{"pubkeys": {public}})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	p7Blob, p7Annotations, err := keybroker.Encrypt(plain, pkcs7.NewKeyWrapper(), map[string][][]byte{"x509s": {cert}})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	garbage := t.TempDir()
	NewWithT(t).Expect(os.WriteFile(filepath.Join(garbage, "a.pem"), []byte(secretText), 0o600)).To(Succeed())

	publicOnly := map[string]string{annotationPublic: p7Annotations[annotationPublic]}

	for what, tt := range map[string]struct {
		dir         string
		annotations map[string]string
		blob        []byte
		why         string
	}{
		"JWE":                     {jweDir, jweAnnotations, jweBlob, ""},
		"PKCS7":                   {certDir, p7Annotations, p7Blob, ""},
		"another's JWE key":       {strangerDir, jweAnnotations, jweBlob, "none of the 1 private keys in keys directory ring opens the layer"},
		"PKCS7, no certificate":   {jweDir, p7Annotations, p7Blob, "none of the 1 private keys"},
		"no directory":            {"", jweAnnotations, jweBlob, "no keys directory is configured"},
		"missing directory":       {"/nonexistent/ring", jweAnnotations, jweBlob, "keys directory ring holds no usable private key (0 other *.pem, *.key and *.crt files)"},
		"garbage":                 {garbage, jweAnnotations, jweBlob, "holds no usable private key (1 other *.pem, *.key and *.crt files)"},
		"no packets":              {jweDir, publicOnly, nil, "none of the 1 private keys"},
		"a packet that is no JWE": {jweDir, map[string]string{annotationJWE: "eHh4", annotationPublic: publicOnly[annotationPublic]}, nil, "none of the 1 private keys"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			key, err := open(t, Config{Dir: tt.dir}).Unwrap(t.Context(), tt.annotations)
			if tt.why != "" {
				expectUnavailable(t, key, err)
				g.Expect(err.Error()).To(ContainSubstring(tt.why))
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(decrypt(t, key, tt.blob)).To(Equal(plain))
		})
	}
}

// TestPrivateKeyOpensNonsense: that no other key is missing is worth knowing. On such
// a nonce ocicrypt panics.
func TestPrivateKeyOpensNonsense(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, public := privateKey(t)
	packet, err := jwe.NewKeyWrapper().WrapKeys(&encconfig.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {public}}},
		[]byte(`{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","cipheroptions":{"nonce":"AAEC"}}`))
	g.Expect(err).NotTo(HaveOccurred())
	_, err = open(t, Config{Dir: dir}).Unwrap(t.Context(), map[string]string{
		annotationJWE: base64.StdEncoding.EncodeToString(packet), annotationPublic: base64.StdEncoding.EncodeToString([]byte(publicSeed)),
	})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotAnImage), "%v", err)
	g.Expect(err.Error()).To(HaveSuffix("the nonce has 3 bytes, it must have 16"))
}

// TestFilesBeforeProviders: a key at hand is a request saved, and tells nobody that
// this image runs.
func TestFilesBeforeProviders(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, public := privateKey(t)
	broker := keybroker.New(t)
	l := newLayer(t, broker)
	_, annotations, err := keybroker.Encrypt(l.plain, jwe.NewKeyWrapper(), map[string][][]byte{"pubkeys": {public}})
	g.Expect(err).NotTo(HaveOccurred())
	annotations[annotationProvider+name] = l.annotations[annotationProvider+name]
	_, err = open(t, Config{Dir: dir, ProvidersFile: broker.GRPC(t).Config(t, name)}).Unwrap(t.Context(), annotations)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(broker.Requests()).To(HaveLen(1), "only to wrap")
}

func TestBoundsOfTheKeysDirectory(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	for i := range maxKeyFiles + 1 {
		g.Expect(os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.pem", i)), nil, 0o600)).To(Succeed())
	}
	_, err := Open(Config{Dir: dir})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	big := t.TempDir()
	g.Expect(os.WriteFile(filepath.Join(big, "big.key"), make([]byte, maxKeyBytes+1), 0o600)).To(Succeed())
	_, err = Open(Config{Dir: big})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	g.Expect(err.Error()).NotTo(ContainSubstring(big), "the path is a secret's")
}

func TestHostileAnnotations(t *testing.T) {
	t.Parallel()
	public := func(json string) string { return base64.StdEncoding.EncodeToString([]byte(json)) }
	many := map[string]string{}
	for i := range maxProviders + 1 {
		many[fmt.Sprintf("%s%d", annotationProvider, i)] = "eA=="
	}
	for what, tt := range map[string]struct {
		annotations map[string]string
		kind        errdefs.Kind
	}{
		"no base64":          {map[string]string{annotationJWE: "%"}, errdefs.NotAnImage},
		"nothing":            {nil, errdefs.NotAnImage},
		"empty packet":       {map[string]string{annotationJWE: ",", annotationPublic: public(publicSeed)}, errdefs.KeyUnavailable},
		"public no JSON":     {map[string]string{annotationPublic: public("[")}, errdefs.NotAnImage},
		"another cipher":     {map[string]string{annotationPublic: public(`{"cipher":"ROT13"}`)}, errdefs.Unsupported},
		"no HMAC":            {map[string]string{annotationPublic: public(strings.Replace(publicSeed, `"hmac"`, `"h"`, 1))}, errdefs.NotAnImage},
		"public no base64":   {map[string]string{annotationPublic: "%"}, errdefs.NotAnImage},
		"too many packets":   {map[string]string{annotationPKCS7: strings.Repeat("eA==,", maxPackets)}, errdefs.TooLarge},
		"packet too long":    {map[string]string{annotationJWE: strings.Repeat("A", 2*maxPacketBytes)}, errdefs.TooLarge},
		"public too long":    {map[string]string{annotationPublic: strings.Repeat("A", 2*maxOptionsBytes)}, errdefs.TooLarge},
		"too many providers": {many, errdefs.TooLarge},
		"nameless provider":  {map[string]string{annotationProvider: "eA=="}, errdefs.NotAnImage},
		"long name":          {map[string]string{annotationProvider + strings.Repeat("n", maxNameBytes+1): "eA=="}, errdefs.NotAnImage},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			_, err := open(t, Config{}).Unwrap(t.Context(), tt.annotations)
			NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(tt.kind), "%v", err)
		})
	}
}

func TestConfigOfProviders(t *testing.T) {
	t.Parallel()
	for what, tt := range map[string]struct {
		json, method, fault string
	}{
		"command":            {`{"key-providers":{"p":{"cmd":{"path":"/bin/x","args":["a"]}}}}`, methodCommand, ""},
		"gRPC":               {`{"key-providers":{"p":{"grpc":"127.0.0.1:50000"}}}`, methodGRPC, ""},
		"gRPC with scheme":   {`{"key-providers":{"p":{"grpc":"http://127.0.0.1:50000"}}}`, methodGRPC, ""},
		"ttrpc":              {`{"key-providers":{"p":{"ttrpc":"unix:///run/x.sock"}}}`, methodTTRPC, ""},
		"native":             {`{"key-providers":{"p":{"native":"attestation-agent"}}}`, methodNone, ""},
		"command first":      {`{"key-providers":{"p":{"cmd":{"path":"/bin/x"},"grpc":"a:1","ttrpc":"unix:///x"}}}`, methodCommand, ""},
		"path without cmd":   {`{"key-providers":{"p":{"path":"/bin/x"}}}`, methodNone, ""},
		"relative command":   {`{"key-providers":{"p":{"cmd":{"path":"x"}}}}`, "", `the command's path "x" is not absolute`},
		"vsock":              {`{"key-providers":{"p":{"ttrpc":"vsock://2:1"}}}`, "", "not of the form unix:///path"},
		"relative socket":    {`{"key-providers":{"p":{"ttrpc":"unix://x"}}}`, "", "not of the form unix:///path"},
		"empty gRPC address": {`{"key-providers":{"p":{"grpc":"http://"}}}`, "", "empty"},
		"no JSON":            {`[`, "", "unexpected end"},
		"nameless":           {`{"key-providers":{"":{}}}`, "", "name has 0 bytes"},
		"too many arguments": {`{"key-providers":{"p":{"cmd":{"path":"/x","args":[` + strings.Repeat(`"",`, maxArgs) + `""]}}}}`, "", "65 arguments"},
		"too many":           {`{"key-providers":{` + manyProviders() + `}}`, "", "17 key providers"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			path := filepath.Join(t.TempDir(), "conf")
			g.Expect(os.WriteFile(path, []byte(tt.json), 0o600)).To(Succeed())
			providers, err := LoadProviders(path)
			if tt.fault != "" {
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
				g.Expect(err.Error()).To(And(ContainSubstring(tt.fault), ContainSubstring(path)))
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(providers["p"].method()).To(Equal(tt.method))
			g.Expect(providers["p"].grpc).NotTo(ContainSubstring("http"))
		})
	}
	g := NewWithT(t)
	g.Expect(LoadProviders("/nonexistent/conf")).To(BeEmpty(), "as ocicrypt")
	huge := filepath.Join(t.TempDir(), "conf")
	g.Expect(os.WriteFile(huge, make([]byte, maxConfigBytes+1), 0o600)).To(Succeed())
	_, err := Open(Config{ProvidersFile: huge})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
}

func manyProviders() string {
	entries := make([]string, 0, maxProviders+1)
	for i := range maxProviders + 1 {
		entries = append(entries, fmt.Sprintf(`"%d":{}`, i))
	}
	return strings.Join(entries, ",")
}

// TestUnsupportedProvider: "native" is for ocicrypt-rs alone, and no reason to lose
// the other providers.
func TestUnsupportedProvider(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "conf")
	NewWithT(t).Expect(os.WriteFile(config, []byte(`{"key-providers":{"attestation-agent":{"native":"x"}}}`), 0o600)).To(Succeed())
	l := newLayer(t, keybroker.New(t))
	key, err := open(t, Config{ProvidersFile: config}).Unwrap(t.Context(), l.annotations)
	expectUnavailable(t, key, err)
	NewWithT(t).Expect(err.Error()).To(ContainSubstring("none of cmd, grpc and ttrpc"))
}

// newKey is a layer key in the open, and what it encrypted.
func newKey(t *testing.T) (*LayerKey, layer) {
	t.Helper()
	broker := keybroker.New(t)
	l := newLayer(t, broker)
	key, err := open(t, Config{ProvidersFile: broker.GRPC(t).Config(t, name)}).Unwrap(t.Context(), l.annotations)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return key, l
}

func TestCiphertextIsAuthenticated(t *testing.T) {
	t.Parallel()
	key, l := newKey(t)
	flipped := bytes.Clone(l.blob)
	flipped[len(flipped)-1] ^= 1
	for what, blob := range map[string][]byte{
		"bit flipped": flipped, "truncated": l.blob[:len(l.blob)-1], "empty": nil, "longer": append(bytes.Clone(l.blob), 0),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			_, err := decrypt(t, key, blob)
			NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.DigestMismatch), "%v", err)
		})
	}
	g := NewWithT(t)
	// However the bytes come, and as often as one likes.
	for _, wrap := range []func(io.Reader) io.Reader{iotest.DataErrReader, iotest.OneByteReader} {
		r, err := key.Open(wrap(bytes.NewReader(l.blob)))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(io.ReadAll(r)).To(Equal(l.plain))
	}
	broken := errors.New("the connection broke")
	r, err := key.Open(iotest.ErrReader(broken))
	g.Expect(err).NotTo(HaveOccurred())
	_, err = io.ReadAll(r)
	g.Expect(err).To(Equal(broken), "the blob's own error is not the cipher's")
	_, err = r.Read(make([]byte, 1))
	g.Expect(err).To(Equal(broken))
}

// TestNonceInPlain: anybody can write the public options.
func TestNonceInPlain(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	broker := keybroker.New(t)
	l := newLayer(t, broker)
	var public map[string]any
	data, err := base64.StdEncoding.DecodeString(l.annotations[annotationPublic])
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(json.Unmarshal(data, &public)).To(Succeed())
	public["cipheroptions"] = map[string][]byte{"nonce": make([]byte, nonceBytes)}
	data, err = json.Marshal(public)
	g.Expect(err).NotTo(HaveOccurred())
	l.annotations[annotationPublic] = base64.StdEncoding.EncodeToString(data)
	key, err := open(t, Config{ProvidersFile: broker.GRPC(t).Config(t, name)}).Unwrap(t.Context(), l.annotations)
	expectUnavailable(t, key, err)
	g.Expect(err.Error()).To(ContainSubstring("two different nonces"))
}

// TestKeysAreWipedAndNotPrinted looks at the memory that held them.
func TestKeysAreWipedAndNotPrinted(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	key, _ := newKey(t)
	held := key.secret.key
	g.Expect(held).NotTo(Equal(make([]byte, keyBytes)))
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		g.Expect(fmt.Sprintf(format, key)).To(Equal("layer key"))
		g.Expect(fmt.Sprintf(format, *key)).NotTo(ContainSubstring(fmt.Sprintf("%x", held[:4])))
	}
	g.Expect(json.Marshal(map[string]any{"key": key})).To(MatchJSON(`{"key":{}}`))
	key.Wipe()
	g.Expect(held).To(Equal(make([]byte, keyBytes)))
	_, err := key.Open(bytes.NewReader(nil))
	g.Expect(err).To(HaveOccurred())

	dir, _ := privateKey(t)
	ring, err := Open(Config{Dir: dir})
	g.Expect(err).NotTo(HaveOccurred())
	private := ring.files.private[0]
	g.Expect(string(private)).To(ContainSubstring("PRIVATE KEY"))
	ring.Close()
	g.Expect(private).To(Equal(make([]byte, len(private))))
}

// TestNoCoreDump crashes a process with and without protection.
func TestNoCoreDump(t *testing.T) {
	t.Parallel()
	crashed := func(arg string) (dumpable string, core bool, files int) {
		g := NewWithT(t)
		dir := t.TempDir()
		cmd := exec.Command("/bin/sh", "-c", `ulimit -c "$(ulimit -H -c)"; exec "$@"`, "sh", os.Args[0], arg)
		cmd.Dir = dir
		out, err := cmd.Output()
		var exit *exec.ExitError
		g.Expect(errors.As(err, &exit)).To(BeTrue(), "%v", err)
		status, ok := exit.Sys().(syscall.WaitStatus)
		g.Expect(ok).To(BeTrue())
		g.Expect(status.Signaled() && status.Signal() == unix.SIGABRT).To(BeTrue(), "%v", exit)
		entries, err := os.ReadDir(dir)
		g.Expect(err).NotTo(HaveOccurred())
		return strings.TrimSpace(string(out)), status.CoreDump(), len(entries)
	}
	g := NewWithT(t)
	dumpable, core, files := crashed(noDumpArg)
	g.Expect(dumpable).To(Equal("0"))
	g.Expect(core).To(BeFalse())
	g.Expect(files).To(BeZero())
	dumpable, core, _ = crashed(dumpArg)
	g.Expect(dumpable).To(Equal("1"))
	if !core {
		t.Skip("no process dumps core on this machine: that this one does not proves little")
	}
}
