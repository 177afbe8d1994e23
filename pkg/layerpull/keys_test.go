package layerpull

import (
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/internal/testkit/keybroker"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
)

const providerName = "attestation-agent"

// pushForBroker pushes an image whose keys the broker has.
func (r *testRegistry) pushForBroker(t *testing.T, broker *keybroker.Broker) (imageref.Reference, images.Summary) {
	t.Helper()
	g := NewWithT(t)
	dir := t.TempDir()
	_, err := images.Build(t.Context(), dir, "t", images.Spec{Layers: []images.Layer{oneFile("/secret")}})
	g.Expect(err).NotTo(HaveOccurred())
	keybroker.EncryptLayout(t, dir, "t", broker.GRPC(t).KeyWrapper(t, providerName), keybroker.Recipients(providerName))
	summary, err := images.Inspect(dir, "t")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(images.Push(t.Context(), dir, "t", r.host+"/test/app:t")).To(Succeed())
	r.reset()
	return r.ref(t, summary.Digest), summary
}

// TestKeyProvider pulls an image whose key a broker releases, and one that it keeps.
func TestKeyProvider(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, broker := newRegistry(t), keybroker.New(t)
	ref, summary := reg.pushForBroker(t, broker)
	cfg := reg.config(t)
	cfg.KeyProviders = broker.TTRPC(t).Config(t, providerName)
	broker.Behave(keybroker.Behaviour{Refuse: "the evidence is wrong: " + marker})
	store := newStore(t)
	_, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.KeyUnavailable), "%v", err)
	g.Expect(err).To(MatchError(And(ContainSubstring("it refused (PermissionDenied)"), Not(ContainSubstring(marker)))))
	g.Expect(reg.count(summary.Instances[0].Layers[0].Digest.String())).To(BeZero())
	expectEmpty(t, store)

	broker.Behave(keybroker.Behaviour{Numbers: true})
	img, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, img.LayerDirs[0], "secret")).To(Equal(marker))
}

// TestRules refuses an image before its key is asked for and its layers are fetched.
func TestRules(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, broker := newRegistry(t), keybroker.New(t)
	ref, summary := reg.pushForBroker(t, broker)
	asked := len(broker.Requests())
	cfg := reg.config(t)
	cfg.KeyProviders = broker.TTRPC(t).Config(t, providerName)
	cfg.Rules = policy.Config{EncryptedSigned: policy.Mandatory} // the image is not signed
	store := newStore(t)
	_, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
	g.Expect(err).To(MatchError(And(ContainSubstring(`encrypted_signed = "mandatory"`), ContainSubstring(ref.String()))))
	g.Expect(broker.Requests()).To(HaveLen(asked))
	g.Expect(reg.count(summary.Instances[0].Layers[0].Digest.String())).To(BeZero())
	g.Expect(reg.count(summary.Instances[0].Config.String())).To(BeZero())
	expectEmpty(t, store)

	cfg.Rules = policy.Config{UnencryptedSigned: policy.Refused, UnencryptedUnsigned: policy.Refused}
	_, err = Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
}
