package layerpull

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func TestPull(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	keys, public := newKeys(t)
	encryption := &images.Encryption{PublicKeys: [][]byte{public}}
	for _, tc := range []struct {
		name        string
		compression images.Compression
		encrypt     *images.Encryption
		platforms   []imgspec.Platform
	}{
		{name: "gzip", compression: images.Gzip},
		{name: "zstd", compression: images.Zstd},
		{name: "uncompressed", compression: images.None},
		{name: "encrypted gzip", compression: images.Gzip, encrypt: encryption},
		{name: "encrypted zstd", compression: images.Zstd, encrypt: encryption},
		{name: "encrypted uncompressed", compression: images.None, encrypt: encryption},
		{name: "one layer encrypted", encrypt: &images.Encryption{PublicKeys: [][]byte{public}, Layers: []int{1}}},
		{name: "index", platforms: []imgspec.Platform{{OS: "linux", Architecture: "s390x"}, {OS: "linux", Architecture: runtime.GOARCH}}},
		{name: "encrypted index", encrypt: encryption, platforms: []imgspec.Platform{{OS: "linux", Architecture: runtime.GOARCH}, {OS: "linux", Architecture: "s390x"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			reg, store := newRegistry(t), newStore(t)
			ref, summary := reg.push(t, images.Spec{
				Layers: []images.Layer{
					{Files: []images.File{{Path: "/etc/passwd", Content: []byte("root")}}},
					oneFile("/secret"),
					{Random: 3 << 20},
				},
				Config: imgspec.ImageConfig{User: "web"}, Compression: tc.compression, Encrypt: tc.encrypt, Platforms: tc.platforms,
			})
			cfg := reg.config(t)
			cfg.KeysDir = keys
			img, err := Pull(t.Context(), ref, store, cfg)
			g.Expect(err).NotTo(HaveOccurred())

			var want images.Instance
			for _, i := range summary.Instances {
				if i.Platform == "linux/"+runtime.GOARCH {
					want = i
				}
			}
			g.Expect(img.Manifest.Digest()).To(Equal(want.Manifest))
			g.Expect(img.ConfigDigest.Digest()).To(Equal(want.Config))
			g.Expect(img.Config.Config.User).To(Equal("web"))
			g.Expect(img.FetchedLayers).To(Equal(len(want.Layers)))
			g.Expect(img.FetchedBytes).To(Equal(want.Bytes))
			g.Expect(img.LayerDirs).To(HaveLen(len(want.Layers)))
			g.Expect(read(t, img.LayerDirs[0], "etc/passwd")).To(Equal("root"))
			g.Expect(read(t, img.LayerDirs[1], "secret")).To(Equal(marker))
			g.Expect(read(t, img.LayerDirs[2], "random-2")).To(HaveLen(3 << 20))
			if tc.platforms != nil {
				g.Expect(read(t, img.LayerDirs[3], "platform")).To(Equal("linux/" + runtime.GOARCH + "\n"))
			}
			tmp, err := os.ReadDir(store.path("tmp", ""))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(tmp).To(BeEmpty())

			// Again: from another process's view of the store, without the network.
			reg.reset()
			again, err := OpenStore(store.dir)
			g.Expect(err).NotTo(HaveOccurred())
			second, err := Pull(t.Context(), ref, again, cfg)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(reg.requests).To(BeEmpty())
			g.Expect(second.FetchedLayers).To(BeZero())
			img.FetchedLayers, img.FetchedBytes = 0, 0
			g.Expect(second).To(Equal(img))
		})
	}
}

func TestPKCS7(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	g.Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "husk"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	g.Expect(err).NotTo(HaveOccurred())
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})

	reg, store := newRegistry(t), newStore(t)
	ref, _ := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/secret")}, Encrypt: &images.Encryption{Certificates: [][]byte{cert}}})
	cfg := reg.config(t)
	cfg.KeysDir = t.TempDir()
	writeFile(t, filepath.Join(cfg.KeysDir, "both.pem"), string(private)+string(cert))
	img, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, img.LayerDirs[0], "secret")).To(Equal(marker))
}

func TestKeys(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	_, public := newKeys(t)
	wrong, _ := newKeys(t)
	reg := newRegistry(t)
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/secret")}, Encrypt: &images.Encryption{PublicKeys: [][]byte{public}}})
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.Mkdir(garbage, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(garbage, "a.pem"), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0LWJ5dGVz\n-----END PRIVATE KEY-----\n")

	for _, tc := range []struct{ name, dir, message string }{
		{"none configured", "", "no keys directory is configured"},
		{"directory missing", "/nonexistent/ring", "keys directory ring holds no usable private key"},
		{"wrong key", wrong, "none of the 1 private keys in keys directory ring opens the layer"},
		{"garbage", garbage, "keys directory garbage holds no usable private key (1 other *.pem, *.key and *.crt files)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			cfg, store := reg.config(t), newStore(t)
			cfg.KeysDir = tc.dir
			_, err := Pull(t.Context(), ref, store, cfg)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.KeyUnavailable), "%v", err)
			layer := summary.Instances[0].Layers[0].Digest
			g.Expect(err).To(MatchError(And(ContainSubstring(tc.message), ContainSubstring(ref.String()), ContainSubstring(layer.String()))))
			g.Expect(err.Error()).NotTo(Or(ContainSubstring("c2Vj"), ContainSubstring("a.pem"), ContainSubstring(garbage)))
			g.Expect(reg.count(layer.String())).To(BeZero(), "a layer without a key is not worth a request")
			expectEmpty(t, store)
		})
	}
}

func TestKeyringReadsManyFiles(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	right, public := newKeys(t)
	wrong, _ := newKeys(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/secret")}, Encrypt: &images.Encryption{PublicKeys: [][]byte{public}}})
	t.Run("one of several opens it", func(t *testing.T) {
		t.Parallel()
		cfg := reg.config(t)
		cfg.KeysDir = t.TempDir()
		writeFile(t, filepath.Join(cfg.KeysDir, "0.txt"), strings.Repeat("x", 2*64<<10))
		writeFile(t, filepath.Join(cfg.KeysDir, "1.pem"), "not a key")
		writeFile(t, filepath.Join(cfg.KeysDir, "2.pem"), read(t, wrong, images.PrivateKeyFile))
		writeFile(t, filepath.Join(cfg.KeysDir, "3.key"), read(t, right, images.PrivateKeyFile))
		_, err := Pull(t.Context(), ref, newStore(t), cfg)
		NewWithT(t).Expect(err).NotTo(HaveOccurred())
	})
	t.Run("too many", func(t *testing.T) {
		t.Parallel()
		cfg := reg.config(t)
		cfg.KeysDir = t.TempDir()
		for i := range 64 + 1 {
			writeFile(t, filepath.Join(cfg.KeysDir, fmt.Sprintf("%d.pem", i)), "x")
		}
		_, err := Pull(t.Context(), ref, newStore(t), cfg)
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	})
	t.Run("too large", func(t *testing.T) {
		t.Parallel()
		cfg := reg.config(t)
		cfg.KeysDir = t.TempDir()
		writeFile(t, filepath.Join(cfg.KeysDir, "secret-name.pem"), strings.Repeat("x", 64<<10+1))
		_, err := Pull(t.Context(), ref, newStore(t), cfg)
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
		NewWithT(t).Expect(err.Error()).NotTo(ContainSubstring("secret-name"))
	})
}

func TestSharedLayers(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	same := oneFile("/same")
	// The same layer below and above another: one directory, at the upper place.
	ref, _ := reg.push(t, images.Spec{Layers: []images.Layer{same, oneFile("/other"), same}})
	img, err := Pull(t.Context(), ref, store, reg.config(t))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(img.FetchedLayers).To(Equal(2))
	g.Expect(img.LayerDirs).To(HaveLen(2))
	g.Expect(read(t, img.LayerDirs[0], "other")).To(Equal(marker))
	g.Expect(read(t, img.LayerDirs[1], "same")).To(Equal(marker))

	// A tag beside the digest changes nothing.
	tagged, err := imageref.ParseReference(strings.Replace(ref.String(), "@", ":t@", 1))
	g.Expect(err).NotTo(HaveOccurred())
	_, err = Pull(t.Context(), tagged, newStore(t), reg.config(t))
	g.Expect(err).NotTo(HaveOccurred())

	// Another image on the same layer fetches only its own.
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{same, oneFile("/third")}})
	img, err = Pull(t.Context(), ref, store, reg.config(t))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(img.FetchedLayers).To(Equal(1))
	g.Expect(reg.count(summary.Instances[0].Layers[0].Digest.String())).To(BeZero())
}

func TestConcurrentPullsFetchOnce(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg := newRegistry(t)
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/a"), {Random: 5 << 20}, oneFile("/b")}})
	cfg, dir := reg.config(t), t.TempDir()
	var wg sync.WaitGroup
	errs := make([]error, 5)
	for i := range errs {
		wg.Go(func() {
			// A store of its own each, as in processes of their own.
			store, err := OpenStore(dir)
			if err == nil {
				_, err = Pull(t.Context(), ref, store, cfg)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for _, err := range errs {
		g.Expect(err).NotTo(HaveOccurred())
	}
	for _, layer := range summary.Instances[0].Layers {
		g.Expect(reg.count(layer.Digest.String())).To(Equal(1))
	}
}

func TestCancellationLeavesNothing(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{{Random: 4 << 20}}, Compression: images.None})
	started, size := make(chan struct{}), summary.Instances[0].Layers[0].Size
	reg.lie(summary.Instances[0].Layers[0].Digest, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = w.Write(make([]byte, 1<<20))
		w.(http.Flusher).Flush()
		close(started)
		<-req.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	_, err := Pull(ctx, ref, store, reg.config(t))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
	expectEmpty(t, store)
}

func TestWaitingForALockEndsWithTheContext(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	ref := reg.ref(t, "sha256:"+"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	unlock, err := store.lock(t.Context(), imageLock(ref))
	g.Expect(err).NotTo(HaveOccurred())
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Pull(ctx, ref, store, reg.config(t))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
}

func TestOpenStoreRemovesStaleWork(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	store := newStore(t)
	for _, name := range []string{"dead", "alive"} {
		g.Expect(os.MkdirAll(store.path("tmp", name+"/sub"), 0o700)).To(Succeed())
	}
	unlock, err := store.lock(t.Context(), "alive")
	g.Expect(err).NotTo(HaveOccurred())
	defer unlock()
	_, err = OpenStore(store.dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(store.path("tmp", "dead")).NotTo(BeAnExistingFile())
	g.Expect(store.path("tmp", "alive/sub")).To(BeADirectory())
}

func TestPinned(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"registry.example/app:1", ""} {
		ref := imageref.Reference{}
		if s != "" {
			var err error
			ref, err = imageref.ParseReference(s)
			NewWithT(t).Expect(err).NotTo(HaveOccurred())
		}
		_, err := Pull(t.Context(), ref, newStore(t), Config{})
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
	}
}

// TestNothingOutsideTheStore proves that no plain content is written anywhere
// but to the store: temporary directories included.
func TestNothingOutsideTheStore(t *testing.T) {
	needsRoot(t) // and no t.Parallel: TMPDIR is the process's
	g := NewWithT(t)
	keys, public := newKeys(t)
	reg, store := newRegistry(t), newStore(t)
	ref, _ := reg.push(t, images.Spec{
		Layers:  []images.Layer{oneFile("/secret"), entries(tar.Header{Name: "also", Typeflag: tar.TypeReg})},
		Encrypt: &images.Encryption{PublicKeys: [][]byte{public}},
	})
	cfg := reg.config(t)
	cfg.KeysDir = keys
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("HOME", tmp)
	before := list(t, "/var/tmp")
	_, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(list(t, tmp)).To(BeEmpty())
	g.Expect(list(t, "/var/tmp")).To(Equal(before))
	found := 0
	err = filepath.WalkDir(store.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(read(t, path), marker) {
			found++
			g.Expect(path).To(HavePrefix(store.path("layers", "")))
		}
		return err
	})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found).To(Equal(2))
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestNestedIndexes: what the host accepts, the sandbox follows as deep, and no deeper.
func TestNestedIndexes(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	reg := newRegistry(t)
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/secret")}})
	descriptor := imgspec.Descriptor{MediaType: imgspec.MediaTypeImageManifest}
	for depth := 1; depth <= maxIndexDepth+1; depth++ {
		g := NewWithT(t)
		var inner json.RawMessage
		reg.get(t, "manifests", ref.Digest().Digest(), &inner)
		descriptor.Digest, descriptor.Size = ref.Digest().Digest(), int64(len(inner))
		descriptor.Platform = &imgspec.Platform{OS: "linux", Architecture: runtime.GOARCH}
		data, err := json.Marshal(imgspec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex, Manifests: []imgspec.Descriptor{descriptor},
		})
		g.Expect(err).NotTo(HaveOccurred())
		ref = reg.putManifest(t, imgspec.MediaTypeImageIndex, data)
		descriptor.MediaType = imgspec.MediaTypeImageIndex
		if depth > maxIndexDepth {
			expectRefused(t, ref, reg.config(t), errdefs.NotAnImage)
			continue
		}
		img, err := Pull(t.Context(), ref, newStore(t), reg.config(t))
		g.Expect(err).NotTo(HaveOccurred(), "depth %d", depth)
		g.Expect(img.Manifest.Digest()).To(Equal(summary.Instances[0].Manifest))
		g.Expect(read(t, img.LayerDirs[0], "secret")).To(Equal(marker))
	}
}
