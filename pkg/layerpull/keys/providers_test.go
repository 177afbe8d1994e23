package keys

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	encconfig "github.com/containers/ocicrypt/config"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/internal/testkit/keybroker"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestProviderReleasesKey walks each way to reach a provider, and both forms in
// which a provider may send bytes.
func TestProviderReleasesKey(t *testing.T) {
	t.Parallel()
	for method, serve := range endpoints {
		for _, numbers := range []bool{false, true} {
			t.Run(method+map[bool]string{false: " base64", true: " numbers"}[numbers], func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				broker := keybroker.New(t)
				l := newLayer(t, broker)
				broker.Behave(keybroker.Behaviour{Numbers: numbers})
				ring := open(t, Config{ProvidersFile: serve(broker, t).Config(t, name)})
				key, err := ring.Unwrap(t.Context(), l.annotations)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(decrypt(t, key, l.blob)).To(Equal(l.plain))

				asked := broker.Requests()
				g.Expect(asked).To(HaveLen(2), "one to wrap, one to unwrap")
				g.Expect(asked[1].Operation).To(Equal("keyunwrap"))
				g.Expect(asked[1].KID).To(Equal(keybroker.KID))
				// What the confidential data hub's parser wants, member by member.
				g.Expect(string(asked[1].JSON)).To(HavePrefix(`{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{}},"annotation":"`))
			})
		}
	}
}

// TestWholeImage unwraps every layer of an image that was encrypted for a provider.
func TestWholeImage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	built, err := images.Build(t.Context(), dir, "app", images.Spec{Layers: []images.Layer{
		{Files: []images.File{{Path: "/a", Content: []byte("a")}}}, {Files: []images.File{{Path: "/b", Content: []byte("b")}}, Random: 100_000},
	}})
	g.Expect(err).NotTo(HaveOccurred())
	broker := keybroker.New(t)
	manifest := keybroker.EncryptLayout(t, dir, "app", broker.GRPC(t).KeyWrapper(t, name), keybroker.Recipients(name))
	ring := open(t, Config{ProvidersFile: broker.TTRPC(t).Config(t, name)})
	for i, desc := range manifest.Layers {
		g.Expect(desc.MediaType).To(HaveSuffix("+encrypted"))
		key, err := ring.Unwrap(t.Context(), desc.Annotations)
		g.Expect(err).NotTo(HaveOccurred())
		blob, err := os.Open(filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded()))
		g.Expect(err).NotTo(HaveOccurred())
		plain, err := key.Open(blob)
		g.Expect(err).NotTo(HaveOccurred())
		tar, err := gzip.NewReader(plain)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(digest.FromReader(tar)).To(Equal(built.Instances[0].Layers[i].DiffID))
		g.Expect(blob.Close()).To(Succeed())
	}
}

// TestKeyWrapper wraps with one of husk's wrapper and ocicrypt's, and unwraps
// with the other.
func TestKeyWrapper(t *testing.T) {
	t.Parallel()
	broker := keybroker.New(t)
	grpc := broker.GRPC(t)
	theirs := grpc.KeyWrapper(t, name)
	private := &encconfig.DecryptConfig{Parameters: map[string][][]byte{"privkeys": {[]byte(secretText)}}}
	for method, serve := range endpoints {
		t.Run(method, func(t *testing.T) {
			g := NewWithT(t)
			providers, err := LoadProviders(serve(broker, t).Config(t, name))
			g.Expect(err).NotTo(HaveOccurred())
			ours := providers[name].KeyWrapper(t.Context())
			g.Expect(ours.GetAnnotationID()).To(Equal(theirs.GetAnnotationID()))
			g.Expect(ours.NoPossibleKeys(nil)).To(BeFalse())

			ec := &encconfig.EncryptConfig{Parameters: keybroker.Recipients(name)}
			packet, err := ours.WrapKeys(ec, []byte("options"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(theirs.UnwrapKey(&encconfig.DecryptConfig{}, packet)).To(Equal([]byte("options")))
			packet, err = theirs.WrapKeys(ec, []byte("options"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(ours.UnwrapKey(private, packet)).To(Equal([]byte("options")))
			g.Expect(ours.WrapKeys(&encconfig.EncryptConfig{}, []byte("options"))).To(BeNil(), "not asked for")

			asked := broker.Requests()
			last := asked[len(asked)-1]
			g.Expect(last.Parameters).To(BeEmpty(), "ocicrypt's wrapper sends the private keys along")
			g.Expect(string(last.JSON)).NotTo(ContainSubstring("privkeys"))
		})
	}
}

func TestHostileProvider(t *testing.T) {
	t.Parallel()
	options := func(change func(map[string]any)) func([]byte) []byte {
		return func(data []byte) []byte {
			var o map[string]any
			if err := json.Unmarshal(data, &o); err != nil {
				panic(err)
			}
			change(o)
			data, err := json.Marshal(o)
			if err != nil {
				panic(err)
			}
			return data
		}
	}
	for what, tt := range map[string]struct {
		behaviour keybroker.Behaviour
		why       string
	}{
		"refuses": {keybroker.Behaviour{Refuse: "no attestation: key " + secretText}, "it refused (PermissionDenied)|the command failed: exit status 3"},
		"garbage": {keybroker.Behaviour{Raw: []byte(secretText)}, "not of the key provider protocol"},
		"a type that quotes": {keybroker.Behaviour{Raw: []byte(`{"keyunwrapresults":{"optsdata":{"` + secretText + `":1}}}`)},
			"not of the key provider protocol"},
		"numbers that are no bytes": {keybroker.Behaviour{Raw: []byte(`{"keyunwrapresults":{"optsdata":[1,256]}}`)}, "not of the key provider protocol"},
		"no key":                    {keybroker.Behaviour{Raw: []byte(`{}`)}, "the reply has no key"},
		"null":                      {keybroker.Behaviour{Raw: []byte(`null`)}, "the reply has no key"},
		"a bit too long": {keybroker.Behaviour{Raw: []byte(`{}` + strings.Repeat(" ", maxReplyBytes-1))},
			"the reply has more than 65536 bytes"},
		"far too long": {keybroker.Behaviour{Raw: []byte(strings.Repeat(secretText, 1<<16))},
			"the reply has more than 65536 bytes|the reply is too long|it failed or hung up"},
		"options of nothing": {keybroker.Behaviour{Mangle: func([]byte) []byte { return []byte(secretText) }}, "not what ocicrypt wraps"},
		"key too short": {keybroker.Behaviour{Mangle: options(func(o map[string]any) { o["symkey"] = []byte(secretText)[:16] })},
			"the key has 16 bytes, it must have 32"},
		"no symmetric key": {keybroker.Behaviour{Mangle: options(func(o map[string]any) { delete(o, "symkey") })}, "the key has 0 bytes"},
		// ocicrypt panics on this one.
		"nonce too short": {keybroker.Behaviour{Mangle: options(func(o map[string]any) {
			o["cipheroptions"] = map[string][]byte{"nonce": []byte("short")}
		})}, "the nonce has 5 bytes, it must have 16"},
		"no nonce": {keybroker.Behaviour{Mangle: options(func(o map[string]any) { delete(o, "cipheroptions") })}, "the nonce has 0 bytes"},
	} {
		for method, serve := range endpoints {
			t.Run(what+" over "+method, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				broker := keybroker.New(t)
				l := newLayer(t, broker)
				broker.Behave(tt.behaviour)
				ring := open(t, Config{ProvidersFile: serve(broker, t).Config(t, name)})
				key, err := ring.Unwrap(t.Context(), l.annotations)
				expectUnavailable(t, key, err)
				g.Expect(err.Error()).To(ContainSubstring(`key provider "attestation-agent" (` + method + `)`))
				var matches []string
				for why := range strings.SplitSeq(tt.why, "|") {
					if strings.Contains(err.Error(), why) {
						matches = append(matches, why)
					}
				}
				g.Expect(matches).To(HaveLen(1), "%v", err)
				g.Expect(broker.Requests()).To(HaveLen(2), "it is not asked again")
			})
		}
	}
}

func TestProviderThatHangs(t *testing.T) {
	t.Parallel()
	for method, serve := range endpoints {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			broker := keybroker.New(t)
			l := newLayer(t, broker)
			broker.Behave(keybroker.Behaviour{Hang: true})
			config := serve(broker, t).Config(t, name)

			ring := open(t, Config{ProvidersFile: config, ProviderTimeout: 2 * time.Second})
			key, err := ring.Unwrap(t.Context(), l.annotations)
			expectUnavailable(t, key, err)
			g.Expect(err.Error()).To(ContainSubstring("it gave no answer in time"))
			g.Eventually(broker.Hanging()).Should(Receive())

			// The caller goes away: that is no refusal of the provider.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				<-broker.Hanging()
				cancel()
			}()
			_, err = open(t, Config{ProvidersFile: config}).Unwrap(ctx, l.annotations)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
		})
	}
}

func TestProviderThatIsGone(t *testing.T) {
	t.Parallel()
	for method, why := range map[string]string{
		"grpc": "it cannot be reached", "ttrpc": "it cannot be reached", "cmd": "the command failed: exit status 4",
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			broker := keybroker.New(t)
			l := newLayer(t, broker)
			endpoint := endpoints[method](broker, t)
			config := endpoint.Config(t, name)
			endpoint.Stop()
			key, err := open(t, Config{ProvidersFile: config}).Unwrap(t.Context(), l.annotations)
			expectUnavailable(t, key, err)
			NewWithT(t).Expect(err.Error()).To(ContainSubstring(why))
		})
	}
}

// TestProviderOfAnotherName asks nobody.
func TestProviderOfAnotherName(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	broker := keybroker.New(t)
	l := newLayer(t, broker)
	config := broker.TTRPC(t).Config(t, "another")
	key, err := open(t, Config{ProvidersFile: config}).Unwrap(t.Context(), l.annotations)
	expectUnavailable(t, key, err)
	g.Expect(err.Error()).To(ContainSubstring(`no key provider is configured with the name "attestation-agent"`))
	g.Expect(broker.Requests()).To(HaveLen(1), "only to wrap")

	// ocicrypt's environment variable has no say.
	key, err = open(t, Config{}).Unwrap(t.Context(), l.annotations)
	expectUnavailable(t, key, err)
	g.Expect(err.Error()).To(HaveSuffix(`no keys directory is configured; no key providers are configured, the layer names "attestation-agent"`))
}

// TestSeveralPackets takes the one that its provider can open.
func TestSeveralPackets(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	broker, stranger := keybroker.New(t), keybroker.New(t)
	l, foreign := newLayer(t, broker), newLayer(t, stranger)
	annotation := annotationProvider + name
	l.annotations[annotation] = foreign.annotations[annotation] + "," + l.annotations[annotation]
	key, err := open(t, Config{ProvidersFile: broker.TTRPC(t).Config(t, name)}).Unwrap(t.Context(), l.annotations)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(decrypt(t, key, l.blob)).To(Equal(l.plain))
	g.Expect(broker.Requests()).To(HaveLen(3))
}
