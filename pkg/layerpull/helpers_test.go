package layerpull

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/imageref"
)

// marker stands in layers that must not be seen outside the store.
const marker = "MARKER-b6a1f0c2-only-in-the-sandbox"

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers hold files of other owners, and whiteouts are device nodes")
	}
}

// testRegistry is a real registry that records what is asked of it and can lie.
type testRegistry struct {
	host string

	mu       sync.Mutex
	requests []string
	// override replaces the answer to a GET whose path ends with the key.
	override map[string]http.HandlerFunc
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{override: map[string]http.HandlerFunc{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		handler := inner
		for suffix, h := range r.override {
			if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, suffix) {
				handler = h
			}
		}
		r.mu.Unlock()
		handler.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	r.host = server.Listener.Addr().String()
	return r
}

// lie makes the registry answer GETs of d by h.
func (r *testRegistry) lie(d digest.Digest, h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.override[d.String()] = h
}

func (r *testRegistry) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// count returns how many recorded requests contain s.
func (r *testRegistry) count(s string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, req := range r.requests {
		if strings.Contains(req, s) {
			n++
		}
	}
	return n
}

// push builds an image, pushes it and returns its pinned reference.
func (r *testRegistry) push(t *testing.T, spec images.Spec) (imageref.Reference, images.Summary) {
	t.Helper()
	g := NewWithT(t)
	dir := t.TempDir()
	summary, err := images.Build(t.Context(), dir, "t", spec)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(images.Push(t.Context(), dir, "t", r.host+"/test/app:t")).To(Succeed())
	r.reset()
	return r.ref(t, summary.Digest), summary
}

func (r *testRegistry) ref(t *testing.T, d digest.Digest) imageref.Reference {
	t.Helper()
	ref, err := imageref.ParseReference(r.host + "/test/app@" + d.String())
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return ref
}

func (r *testRegistry) url(kind string, d digest.Digest) string {
	return fmt.Sprintf("http://%s/v2/test/app/%s/%s", r.host, kind, d)
}

func (r *testRegistry) get(t *testing.T, kind string, d digest.Digest, v any) {
	t.Helper()
	g := NewWithT(t)
	resp, err := http.Get(r.url(kind, d))
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = resp.Body.Close() }()
	g.Expect(json.NewDecoder(resp.Body).Decode(v)).To(Succeed())
}

// putBlob stores data and returns its descriptor.
func (r *testRegistry) putBlob(t *testing.T, mediaType string, data []byte) imgspec.Descriptor {
	t.Helper()
	g := NewWithT(t)
	d := digest.FromBytes(data)
	resp, err := http.Post(fmt.Sprintf("http://%s/v2/test/app/blobs/uploads/?digest=%s", r.host, d), "application/octet-stream", bytes.NewReader(data))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.Body.Close()).To(Succeed())
	g.Expect(resp.StatusCode).To(Equal(http.StatusCreated))
	return imgspec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// rewrite changes manifest and config of a pushed image and returns the new reference.
func (r *testRegistry) rewrite(t *testing.T, s images.Summary, change func(*imgspec.Manifest, *imgspec.Image)) imageref.Reference {
	t.Helper()
	g := NewWithT(t)
	var m imgspec.Manifest
	var c imgspec.Image
	r.get(t, "manifests", s.Instances[0].Manifest, &m)
	r.get(t, "blobs", s.Instances[0].Config, &c)
	change(&m, &c)
	data, err := json.Marshal(c)
	g.Expect(err).NotTo(HaveOccurred())
	m.Config = r.putBlob(t, m.Config.MediaType, data)
	data, err = json.Marshal(m)
	g.Expect(err).NotTo(HaveOccurred())
	ref := r.putManifest(t, m.MediaType, data)
	r.reset()
	return ref
}

// putManifest stores a manifest or an index and returns its reference.
func (r *testRegistry) putManifest(t *testing.T, mediaType string, data []byte) imageref.Reference {
	t.Helper()
	g := NewWithT(t)
	d := digest.FromBytes(data)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, r.url("manifests", d), bytes.NewReader(data))
	g.Expect(err).NotTo(HaveOccurred())
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.Body.Close()).To(Succeed())
	g.Expect(resp.StatusCode).To(Equal(http.StatusCreated))
	return r.ref(t, d)
}

const acceptAnything = `{"default":[{"type":"insecureAcceptAnything"}]}`

// config returns a configuration that uses nothing of the machine's.
func (r *testRegistry) config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{
		AuthFile: filepath.Join(dir, "auth.json"), PolicyPath: filepath.Join(dir, "policy.json"),
		RegistriesConf: filepath.Join(dir, "registries.conf"), RegistriesConfDir: filepath.Join(dir, "registries.conf.d"),
		RegistriesD: filepath.Join(dir, "registries.d"), CertsD: filepath.Join(dir, "certs.d"),
	}
	writeFile(t, cfg.PolicyPath, acceptAnything)
	writeFile(t, cfg.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", r.host))
	return cfg
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return s
}

// newKeys makes a key pair and returns the directory with the private key alone
// and the public key.
func newKeys(t *testing.T) (dir string, public []byte) {
	t.Helper()
	g := NewWithT(t)
	dir = filepath.Join(t.TempDir(), "ring")
	g.Expect(images.GenerateKeys(dir)).To(Succeed())
	path := filepath.Join(dir, images.PublicKeyFile)
	public, err := os.ReadFile(path)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Remove(path)).To(Succeed())
	return dir, public
}

// expectEmpty checks that a failed pull left nothing behind.
func expectEmpty(t *testing.T, s *Store) {
	t.Helper()
	for _, sub := range []string{"layers", "images", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, sub))
		NewWithT(t).Expect(err).NotTo(HaveOccurred())
		NewWithT(t).Expect(entries).To(BeEmpty(), sub)
	}
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return string(data)
}

// oneFile is a layer with one file that holds the marker.
func oneFile(path string) images.Layer {
	return images.Layer{Files: []images.File{{Path: path, Content: []byte(marker)}}}
}

// entries makes a layer of raw tar entries; regular files hold the marker.
func entries(headers ...tar.Header) images.Layer {
	return images.Layer{Tar: func(tw *tar.Writer) error {
		for _, h := range headers {
			if h.Typeflag != tar.TypeXGlobalHeader {
				h.Mode = cmp.Or(h.Mode, 0o755)
				h.ModTime = images.Epoch
			}
			if h.Typeflag == tar.TypeReg {
				h.Size = int64(len(marker))
			}
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
			if h.Typeflag == tar.TypeReg {
				if _, err := io.WriteString(tw, marker); err != nil {
					return err
				}
			}
		}
		return nil
	}}
}
