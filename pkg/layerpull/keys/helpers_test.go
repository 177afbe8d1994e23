package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/keybroker"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// name is the provider that CoCo's encrypted images name.
const name = "attestation-agent"

// secretText stands for key material in what a hostile provider says.
const secretText = "hunter2-AAECAwQFBgcICQ"

func TestMain(m *testing.M) {
	if keybroker.RunCommand() {
		return
	}
	if len(os.Args) == 2 && (os.Args[1] == dumpArg || os.Args[1] == noDumpArg) {
		crash(os.Args[1] == noDumpArg)
	}
	os.Exit(m.Run())
}

const (
	dumpArg   = "husk-test-dump"
	noDumpArg = "husk-test-no-dump"
)

// crash is a process that dies as a bug would make it die.
func crash(protected bool) {
	if protected {
		if err := NoCoreDump(); err != nil {
			panic(err)
		}
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		panic(err)
	}
	_ = json.NewEncoder(os.Stdout).Encode(dumpable)
	// A panic then ends in an abort, which dumps core.
	debug.SetTraceback("crash")
	panic("a bug")
}

// endpoints are the ways to reach a broker.
var endpoints = map[string]func(*keybroker.Broker, keybroker.TB) *keybroker.Endpoint{
	"grpc":  (*keybroker.Broker).GRPC,
	"ttrpc": (*keybroker.Broker).TTRPC,
	"cmd":   (*keybroker.Broker).Command,
}

// layer is an encrypted layer whose key a broker has.
type layer struct {
	plain, blob []byte
	annotations map[string]string
}

// newLayer encrypts with ocicrypt's own key wrapper.
func newLayer(t *testing.T, b *keybroker.Broker) layer {
	t.Helper()
	wrapper := b.GRPC(t)
	defer wrapper.Stop()
	plain := bytes.Repeat([]byte("the plain text of a layer. "), 4096)
	blob, annotations, err := keybroker.Encrypt(plain, wrapper.KeyWrapper(t, name), keybroker.Recipients(name))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return layer{plain, blob, annotations}
}

// open makes a ring that ends with the test.
func open(t *testing.T, cfg Config) *Ring {
	t.Helper()
	ring, err := Open(cfg)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(ring.Close)
	return ring
}

// decrypt reads the layer with the key.
func decrypt(t *testing.T, key *LayerKey, blob []byte) ([]byte, error) {
	t.Helper()
	r, err := key.Open(bytes.NewReader(blob))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return io.ReadAll(r)
}

// expectUnavailable checks an Unwrap that gave no key.
func expectUnavailable(t *testing.T, key *LayerKey, err error) {
	t.Helper()
	g := NewWithT(t)
	g.Expect(key).To(BeNil())
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.KeyUnavailable), "%v", err)
	for e := err; e != nil; e = errors.Unwrap(e) {
		g.Expect(e.Error()).NotTo(ContainSubstring(secretText))
	}
}

// commandProvider configures a provider that is a shell script.
func commandProvider(t *testing.T, script string, args ...string) string {
	t.Helper()
	g := NewWithT(t)
	data, err := json.Marshal(map[string]any{"key-providers": map[string]any{
		name: map[string]any{"cmd": map[string]any{"path": "/bin/sh", "args": append([]string{"-c", script}, args...)}},
	}})
	g.Expect(err).NotTo(HaveOccurred())
	path := filepath.Join(t.TempDir(), "providers.conf")
	g.Expect(os.WriteFile(path, data, 0o600)).To(Succeed())
	return path
}
