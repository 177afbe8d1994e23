package layerpull

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/blockcipher"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// expectRefused pulls and wants an error of the given kind that names the
// reference, and nothing left in the store.
func expectRefused(t *testing.T, ref imageref.Reference, cfg Config, kind errdefs.Kind) {
	t.Helper()
	g, store := NewWithT(t), newStore(t)
	_, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(err).To(HaveOccurred())
	g.Expect(errdefs.KindOf(err)).To(Equal(kind), "%v", err)
	g.Expect(err.Error()).To(ContainSubstring(ref.String()))
	expectEmpty(t, store)
}

func plainSpec() images.Spec {
	return images.Spec{Layers: []images.Layer{oneFile("/a")}}
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestRegistryRefuses(t *testing.T) {
	t.Parallel()
	unknown := digest.FromString("unknown")
	for _, tc := range []struct {
		name string
		lie  func(reg *testRegistry, s images.Summary) // nil: ask for an image that is not there
		kind errdefs.Kind
	}{
		{"missing manifest", nil, errdefs.NotFound},
		{"missing layer", func(r *testRegistry, s images.Summary) {
			r.lie(s.Instances[0].Layers[0].Digest, answer(404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`))
		}, errdefs.NotFound},
		{"denied", func(r *testRegistry, s images.Summary) {
			r.lie(s.Digest, answer(403, `{"errors":[{"code":"DENIED"}]}`))
		}, errdefs.Unauthorized},
		{"unauthorized", func(r *testRegistry, s images.Summary) {
			r.lie(s.Digest, answer(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`))
		}, errdefs.Unauthorized},
		{"failing", func(r *testRegistry, s images.Summary) {
			r.lie(s.Digest, answer(500, "oops"))
		}, errdefs.RegistryUnavailable},
		{"broken off", func(r *testRegistry, s images.Summary) {
			r.lie(s.Instances[0].Layers[0].Digest, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(s.Instances[0].Layers[0].Size))
				_, _ = io.WriteString(w, "\x1f\x8b")
			})
		}, errdefs.RegistryUnavailable},
		{"corrupted manifest", func(r *testRegistry, s images.Summary) {
			r.lie(s.Digest, answer(200, `{"schemaVersion":2,"mediaType":"`+imgspec.MediaTypeImageManifest+`"}`))
		}, errdefs.DigestMismatch},
		{"corrupted config", func(r *testRegistry, s images.Summary) {
			r.lie(s.Instances[0].Config, func(w http.ResponseWriter, _ *http.Request) {
				w.(http.Flusher).Flush() // no Content-Length
				_, _ = io.WriteString(w, `{"os":"linux"}`)
			})
		}, errdefs.DigestMismatch},
		{"config without an end", func(r *testRegistry, s images.Summary) {
			r.lie(s.Instances[0].Config, func(w http.ResponseWriter, req *http.Request) {
				for req.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 1<<16)); err != nil {
						return
					}
				}
			})
		}, errdefs.DigestMismatch},
		{"another layer", func(r *testRegistry, s images.Summary) {
			r.lie(s.Instances[0].Layers[0].Digest, answer(200, "short"))
		}, errdefs.DigestMismatch},
		{"layer of the right size", func(r *testRegistry, s images.Summary) {
			r.lie(s.Instances[0].Layers[0].Digest, answer(200, strings.Repeat("x", int(s.Instances[0].Layers[0].Size))))
		}, errdefs.DigestMismatch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := newRegistry(t)
			ref, summary := reg.push(t, plainSpec())
			if tc.lie == nil {
				ref = reg.ref(t, unknown)
			} else {
				tc.lie(reg, summary)
			}
			expectRefused(t, ref, reg.config(t), tc.kind)
		})
	}
}

func TestRegistryDown(t *testing.T) {
	t.Parallel()
	reg := newRegistry(t)
	ref, _ := reg.push(t, plainSpec())
	cfg := reg.config(t)
	gone, err := imageref.ParseReference(strings.Replace(ref.String(), reg.host, "127.0.0.1:1", 1))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	expectRefused(t, gone, cfg, errdefs.RegistryUnavailable)
}

func TestOperatorRefuses(t *testing.T) {
	t.Parallel()
	reg := newRegistry(t)
	ref, _ := reg.push(t, plainSpec())

	blocked := reg.config(t)
	writeFile(t, blocked.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\nblocked = true\n", reg.host))
	reject := reg.config(t)
	writeFile(t, reject.PolicyPath, `{"default":[{"type":"reject"}]}`)
	signed := reg.config(t)
	writeFile(t, signed.PolicyPath, `{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"sigstoreSigned","keyData":"LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0KTUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowREFRY0RRZ0FFOHgydUI0OVl4bDdRVlg4UmV0ekVSYkNHZlRxcApzTC9WcUpSTUVESDhxZnhCbm5MYjd1c1RMc1RUVTZ3QTIzNVp2TjBVaHphMk1QQXZqZXFBS0ZCQnJ3PT0KLS0tLS1FTkQgUFVCTElDIEtFWS0tLS0tCg=="}]}}}`)
	for name, tc := range map[string]struct {
		cfg  Config
		kind errdefs.Kind
	}{
		"blocked registry":         {blocked, errdefs.Unsupported},
		"policy rejects":           {reject, errdefs.PolicyRefused},
		"policy wants a signature": {signed, errdefs.PolicyRefused},
	} {
		expectRefused(t, ref, tc.cfg, tc.kind)
		NewWithT(t).Expect(reg.count("/blobs/")).To(BeZero(), name+": nothing but manifests and signatures may be asked for")
	}
}

func TestMirror(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	origin, mirror := newRegistry(t), newRegistry(t)
	ref, _ := origin.push(t, plainSpec())
	_, summary := mirror.push(t, plainSpec())
	cfg := origin.config(t)
	writeFile(t, cfg.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", origin.host, mirror.host))
	origin.reset()
	_, err := Pull(t.Context(), ref, newStore(t), cfg)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(origin.requests).To(BeEmpty())
	g.Expect(mirror.count("/blobs/")).To(BeNumerically(">", 1))

	mirror.lie(summary.Digest, answer(200, `{"schemaVersion":2}`))
	expectRefused(t, ref, cfg, errdefs.DigestMismatch)
}

func TestImageRefused(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	for _, tc := range []struct {
		name   string
		change func(*imgspec.Manifest, *imgspec.Image)
		kind   errdefs.Kind
	}{
		{"artifact type", func(m *imgspec.Manifest, _ *imgspec.Image) { m.ArtifactType = "application/x" }, errdefs.NotAnImage},
		{"artifact config", func(m *imgspec.Manifest, _ *imgspec.Image) { m.Config.MediaType = imgspec.MediaTypeEmptyJSON }, errdefs.NotAnImage},
		{"size too small", func(m *imgspec.Manifest, _ *imgspec.Image) { m.Layers[0].Size-- }, errdefs.DigestMismatch},
		{"size too large", func(m *imgspec.Manifest, _ *imgspec.Image) { m.Layers[0].Size++ }, errdefs.DigestMismatch},
		{"size negative", func(m *imgspec.Manifest, _ *imgspec.Image) { m.Layers[0].Size = -1 }, errdefs.NotAnImage},
		{"wrong diff ID", func(_ *imgspec.Manifest, c *imgspec.Image) { c.RootFS.DiffIDs[0] = digest.FromString("x") }, errdefs.DigestMismatch},
		{"diff ID as a path", func(_ *imgspec.Manifest, c *imgspec.Image) { c.RootFS.DiffIDs[0] = "sha256:../../etc" }, errdefs.NotAnImage},
		{"too few diff IDs", func(_ *imgspec.Manifest, c *imgspec.Image) { c.RootFS.DiffIDs = nil }, errdefs.NotAnImage},
		{"another OS", func(_ *imgspec.Manifest, c *imgspec.Image) { c.OS = "plan9" }, errdefs.NoPlatform},
		{"foreign layer", func(m *imgspec.Manifest, _ *imgspec.Image) {
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}, errdefs.Unsupported},
		{"nondistributable layer", func(m *imgspec.Manifest, _ *imgspec.Image) {
			m.Layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		}, errdefs.Unsupported},
		{"encrypted nondistributable layer", func(m *imgspec.Manifest, _ *imgspec.Image) {
			m.Layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted"
		}, errdefs.Unsupported},
		{"unknown layer", func(m *imgspec.Manifest, _ *imgspec.Image) { m.Layers[0].MediaType = "application/x-iso9660" }, errdefs.Unsupported},
		{"too many layers", func(m *imgspec.Manifest, _ *imgspec.Image) {
			for range maxLayers {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		}, errdefs.TooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := newRegistry(t)
			_, summary := reg.push(t, plainSpec())
			expectRefused(t, reg.rewrite(t, summary, tc.change), reg.config(t), tc.kind)
		})
	}
}

// TestSameContentInOtherBytes: the manifest's digest counts, not what the bytes unpack to.
func TestSameContentInOtherBytes(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	reg := newRegistry(t)
	ref, summary := reg.push(t, plainSpec())
	reg.flaky(t, summary.Instances[0].Layers[0], func(w http.ResponseWriter, _ *http.Request, content []byte) {
		const modified = 4 // a byte of gzip's header that says when
		changed := bytes.Clone(content)
		changed[modified] ^= 1
		_, _ = w.Write(changed)
	})
	expectRefused(t, ref, reg.config(t), errdefs.DigestMismatch)
}

// TestSizeOfAStream: the manifest's size counts also where the registry says none.
func TestSizeOfAStream(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	for _, off := range []int64{-1, 1} {
		reg := newRegistry(t)
		_, summary := reg.push(t, plainSpec())
		layer := summary.Instances[0].Layers[0]
		reg.flaky(t, layer, func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.(http.Flusher).Flush() // no Content-Length
			_, _ = w.Write(content)
		})
		ref := reg.rewrite(t, summary, func(m *imgspec.Manifest, _ *imgspec.Image) { m.Layers[0].Size += off })
		expectRefused(t, ref, reg.config(t), errdefs.DigestMismatch)
		// Where it says one, that is enough.
		reg.flaky(t, layer, func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content)
		})
		_, err := Pull(t.Context(), ref, newStore(t), reg.config(t))
		NewWithT(t).Expect(err).To(MatchError(ContainSubstring("there are %d bytes, the manifest says %d", layer.Size, layer.Size+off)))
	}
}

func TestIndexWithoutThisPlatform(t *testing.T) {
	t.Parallel()
	reg := newRegistry(t)
	spec := plainSpec()
	spec.Platforms = []imgspec.Platform{{OS: "linux", Architecture: "s390x"}, {OS: "linux", Architecture: "riscv64"}}
	ref, _ := reg.push(t, spec)
	expectRefused(t, ref, reg.config(t), errdefs.NoPlatform)
}

// replaceLayer puts other bytes in the place of the first layer's, with an
// honest digest and size.
func (r *testRegistry) replaceLayer(t *testing.T, s images.Summary, change func([]byte) []byte) imageref.Reference {
	t.Helper()
	g := NewWithT(t)
	resp, err := http.Get(r.url("blobs", s.Instances[0].Layers[0].Digest))
	g.Expect(err).NotTo(HaveOccurred())
	data, err := io.ReadAll(resp.Body)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.Body.Close()).To(Succeed())
	return r.rewrite(t, s, func(m *imgspec.Manifest, _ *imgspec.Image) {
		d := r.putBlob(t, m.Layers[0].MediaType, change(data))
		d.Annotations = m.Layers[0].Annotations
		m.Layers[0] = d
	})
}

func TestCiphertextAndTails(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	keys, public := newKeys(t)
	encrypted := &images.Encryption{PublicKeys: [][]byte{public}}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for _, tc := range []struct {
		name        string
		encrypt     *images.Encryption
		compression images.Compression
		change      func([]byte) []byte
		kind        errdefs.Kind
	}{
		{"ciphertext truncated", encrypted, images.None, func(b []byte) []byte { return b[:len(b)-1] }, errdefs.DigestMismatch},
		{"ciphertext cut to its first block", encrypted, images.None, func(b []byte) []byte { return b[:16] }, errdefs.DigestMismatch},
		{"ciphertext extended", encrypted, images.None, func(b []byte) []byte { return append(b, 0) }, errdefs.DigestMismatch},
		{"ciphertext changed", encrypted, images.None, flip, errdefs.DigestMismatch},
		{"compressed ciphertext changed", encrypted, images.Gzip, flip, errdefs.DigestMismatch},
		{"plain changed", nil, images.None, flip, errdefs.DigestMismatch},
		{"gzip changed", nil, images.Gzip, flip, errdefs.NotAnImage},
		{"gzip with a second member", nil, images.Gzip, func(b []byte) []byte { return append(b, gzipped([]byte("more"))...) }, errdefs.DigestMismatch},
		{"gzip with garbage behind", nil, images.Gzip, func(b []byte) []byte { return append(b, "garbage"...) }, errdefs.NotAnImage},
		{"tar with bytes behind", nil, images.None, func(b []byte) []byte { return append(b, "tail"...) }, errdefs.DigestMismatch},
		{"empty", nil, images.None, func([]byte) []byte { return nil }, errdefs.DigestMismatch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := newRegistry(t)
			spec := images.Spec{Layers: []images.Layer{{Random: 64 << 10}}, Compression: tc.compression, Encrypt: tc.encrypt}
			_, summary := reg.push(t, spec)
			cfg := reg.config(t)
			cfg.KeysDir = keys
			expectRefused(t, reg.replaceLayer(t, summary, tc.change), cfg, tc.kind)
		})
	}
}

func gzipped(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(data)
	_ = w.Close()
	return buf.Bytes()
}

// TestMalformedCipherOptions: whoever has the public key can wrap any options;
// a nonce of the wrong length makes ocicrypt panic.
func TestMalformedCipherOptions(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	keys, public := newKeys(t)
	private, err := json.Marshal(blockcipher.PrivateLayerBlockCipherOptions{
		SymmetricKey: make([]byte, 32), CipherOptions: map[string][]byte{"nonce": {1, 2, 3}},
	})
	g.Expect(err).NotTo(HaveOccurred())
	wrapped, err := jwe.NewKeyWrapper().WrapKeys(&encconfig.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {public}}}, private)
	g.Expect(err).NotTo(HaveOccurred())
	open, err := json.Marshal(blockcipher.PublicLayerBlockCipherOptions{CipherType: blockcipher.AES256CTR, Hmac: make([]byte, 32)})
	g.Expect(err).NotTo(HaveOccurred())

	reg := newRegistry(t)
	_, summary := reg.push(t, plainSpec())
	ref := reg.rewrite(t, summary, func(m *imgspec.Manifest, _ *imgspec.Image) {
		m.Layers[0].MediaType += encryptedSuffix
		m.Layers[0].Annotations = map[string]string{
			"org.opencontainers.image.enc.keys.jwe": base64.StdEncoding.EncodeToString(wrapped),
			"org.opencontainers.image.enc.pubopts":  base64.StdEncoding.EncodeToString(open),
		}
	})
	cfg := reg.config(t)
	cfg.KeysDir = keys
	expectRefused(t, ref, cfg, errdefs.NotAnImage)
}
