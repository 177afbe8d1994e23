package keybroker_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/internal/testkit/keybroker"
)

// TestOcicryptDecrypts has ocicrypt itself open what the kit encrypted, by its own
// client and its own cipher.
func TestOcicryptDecrypts(t *testing.T) {
	g := NewWithT(t)
	dir := t.TempDir()
	built, err := images.Build(t.Context(), dir, "app", images.Spec{Layers: []images.Layer{
		{Files: []images.File{{Path: "/a", Content: []byte("a")}}}, {Random: 50_000},
	}})
	g.Expect(err).NotTo(HaveOccurred())
	broker := keybroker.New(t)
	wrapper := broker.GRPC(t).KeyWrapper(t, "attestation-agent")
	manifest := keybroker.EncryptLayout(t, dir, "app", wrapper, keybroker.Recipients("attestation-agent"))
	summary, err := images.Inspect(dir, "app")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(summary.Instances[0].Encrypted).To(Equal(2))
	g.Expect(summary.Instances[0].Config).To(Equal(built.Instances[0].Config), "the image ID stays")

	// The registry is one for the process, which ends with this test.
	ocicrypt.RegisterKeyWrapper("provider.attestation-agent", wrapper)
	for _, numbers := range []bool{false, true} {
		broker.Behave(keybroker.Behaviour{Numbers: numbers})
		for i, desc := range manifest.Layers {
			blob, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded()))
			g.Expect(err).NotTo(HaveOccurred())
			plain, _, err := ocicrypt.DecryptLayer(&encconfig.DecryptConfig{}, bytes.NewReader(blob), desc, false)
			g.Expect(err).NotTo(HaveOccurred())
			data, err := io.ReadAll(plain)
			g.Expect(err).NotTo(HaveOccurred())
			want, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", built.Instances[0].Layers[i].Digest.Encoded()))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(bytes.Equal(data, want)).To(BeTrue())
		}
	}
	g.Expect(broker.Requests()).To(HaveLen(2 + 4))
}
