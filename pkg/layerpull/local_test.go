package layerpull

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
)

// localImage is an image in a layout and in an archive of it.
type localImage struct {
	dir, archive string
	summary      images.Summary
}

func newLocal(t *testing.T, spec images.Spec) localImage {
	t.Helper()
	g := NewWithT(t)
	l := localImage{dir: filepath.Join(t.TempDir(), "My_Layout")}
	var err error
	l.summary, err = images.Build(t.Context(), l.dir, "v1", spec)
	g.Expect(err).NotTo(HaveOccurred())
	l.pack(t)
	return l
}

// pack makes the archive of the layout as it now is.
func (l *localImage) pack(t *testing.T) {
	t.Helper()
	g := NewWithT(t)
	l.archive = l.dir + ".tar"
	f, err := os.Create(l.archive)
	g.Expect(err).NotTo(HaveOccurred())
	w := tar.NewWriter(f)
	g.Expect(w.AddFS(os.DirFS(l.dir))).To(Succeed())
	g.Expect(w.Close()).To(Succeed())
	g.Expect(f.Close()).To(Succeed())
}

func (l *localImage) locations() []string {
	return []string{"oci:" + l.dir + ":v1", "oci-archive:" + l.archive + ":v1"}
}

func (l *localImage) blob(d fmt.Stringer) string {
	return filepath.Join(l.dir, "blobs", "sha256", strings.TrimPrefix(d.String(), "sha256:"))
}

// localConfig is a configuration under which a request to a registry fails.
func localConfig(t *testing.T) Config {
	t.Helper()
	cfg := (&testRegistry{host: "127.0.0.1:1"}).config(t)
	writeFile(t, cfg.AuthFile, "{ not read")
	return cfg
}

func TestPullLocation(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	keys, public := newKeys(t)
	for name, spec := range map[string]images.Spec{
		"gzip":           {Compression: images.Gzip},
		"zstd":           {Compression: images.Zstd},
		"encrypted":      {Encrypt: &images.Encryption{PublicKeys: [][]byte{public}}},
		"with an index":  {Platforms: []imgspec.Platform{{OS: "linux", Architecture: "s390x"}, {OS: "linux", Architecture: runtime.GOARCH}}},
		"without layers": {},
	} {
		if name != "without layers" {
			spec.Layers = []images.Layer{oneFile("/secret"), {Random: 1 << 20}}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLocal(t, spec)
			for _, location := range l.locations() {
				g, store := NewWithT(t), newStore(t)
				g.Expect(IsLocation(location)).To(BeTrue())
				cfg := localConfig(t)
				cfg.KeysDir = keys
				ref, img, err := PullLocation(t.Context(), location, store, cfg)
				g.Expect(err).NotTo(HaveOccurred(), location)
				g.Expect(ref.String()).To(Equal("localhost/my-layout@" + l.summary.Digest.String()))
				mine := l.summary.Instances[len(l.summary.Instances)-1]
				g.Expect(img.Manifest.Digest()).To(Equal(mine.Manifest))
				g.Expect(img.ConfigDigest.Digest()).To(Equal(mine.Config))
				g.Expect(img.FetchedLayers).To(Equal(len(mine.Layers)))
				if len(spec.Layers) > 0 {
					g.Expect(read(t, img.LayerDirs[0], "secret")).To(Equal(marker))
				}
				// Again: each check is made again, but no layer is read.
				_, again, err := PullLocation(t.Context(), location, store, cfg)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(again.FetchedLayers).To(BeZero())
				g.Expect(again.LayerDirs).To(Equal(img.LayerDirs))
				writeFile(t, cfg.PolicyPath, `{"default":[{"type":"reject"}]}`)
				_, _, err = PullLocation(t.Context(), location, store, cfg)
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
			}
		})
	}
}

// TestLocalImageIsNoRegistrys: what is in the store from a file does not spare a pull of
// that name the registry's consent.
func TestLocalImageIsNoRegistrys(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g, store := NewWithT(t), newStore(t)
	l := newLocal(t, plainSpec())
	cfg := localConfig(t)
	writeFile(t, cfg.AuthFile, "{}")
	ref, _, err := PullLocation(t.Context(), l.locations()[0], store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	writeFile(t, cfg.RegistriesConf, "[[registry]]\nprefix = \"localhost\"\nlocation = \"127.0.0.1:1\"\n")
	_, err = Pull(t.Context(), ref, store, cfg)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.RegistryUnavailable), "%v", err)
}

// TestPolicyOfLocations: scopes are paths, of each transport for itself.
func TestPolicyOfLocations(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	l := newLocal(t, plainSpec())
	reject, accept := `[{"type":"reject"}]`, `[{"type":"insecureAcceptAnything"}]`
	signed := `[{"type":"sigstoreSigned","keyData":"LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0KTUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowREFRY0RRZ0FFOHgydUI0OVl4bDdRVlg4UmV0ekVSYkNHZlRxcApzTC9WcUpSTUVESDhxZnhCbm5MYjd1c1RMc1RUVTZ3QTIzNVp2TjBVaHphMk1QQXZqZXFBS0ZCQnJ3PT0KLS0tLS1FTkQgUFVCTElDIEtFWS0tLS0tCg=="}]`
	scope := func(transport, path, rule string) string {
		return fmt.Sprintf(`{"default":%s,"transports":{%q:{%q:%s}}}`, reject, transport, path, rule)
	}
	for name, tc := range map[string]struct {
		policy      string
		dir, packed errdefs.Kind // Internal: accepted
	}{
		"the directory":              {scope("oci", l.dir, accept), errdefs.Internal, errdefs.PolicyRefused},
		"its parent":                 {scope("oci", filepath.Dir(l.dir), accept), errdefs.Internal, errdefs.PolicyRefused},
		"all directories":            {scope("oci", "", accept), errdefs.Internal, errdefs.PolicyRefused},
		"the archive":                {scope("oci-archive", l.archive, accept), errdefs.PolicyRefused, errdefs.Internal},
		"archives in a directory":    {scope("oci-archive", filepath.Dir(l.archive), accept), errdefs.PolicyRefused, errdefs.Internal},
		"registries":                 {scope("docker", "", accept), errdefs.PolicyRefused, errdefs.PolicyRefused},
		"the name that it gets":      {scope("docker", "localhost/my-layout", accept), errdefs.PolicyRefused, errdefs.PolicyRefused},
		"a signature, of which none": {scope("oci", "", signed), errdefs.PolicyRefused, errdefs.PolicyRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i, want := range []errdefs.Kind{tc.dir, tc.packed} {
				g, store, cfg := NewWithT(t), newStore(t), localConfig(t)
				writeFile(t, cfg.PolicyPath, tc.policy)
				_, _, err := PullLocation(t.Context(), l.locations()[i], store, cfg)
				if want == errdefs.Internal {
					g.Expect(err).NotTo(HaveOccurred())
					continue
				}
				g.Expect(errdefs.KindOf(err)).To(Equal(want), "%v", err)
				expectEmpty(t, store)
			}
		})
	}
	t.Run("rules", func(t *testing.T) {
		t.Parallel()
		g, cfg := NewWithT(t), localConfig(t)
		cfg.Rules = policy.Config{UnencryptedUnsigned: policy.Refused}
		_, _, err := PullLocation(t.Context(), l.locations()[0], newStore(t), cfg)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
	})
}

// TestLocalLies: a layout is believed in nothing.
func TestLocalLies(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	canary := filepath.Join(t.TempDir(), "canary")
	writeFile(t, canary, "CANARY")
	layerOf := func(l *localImage) string { return l.blob(l.summary.Instances[0].Layers[0].Digest) }
	configOf := func(l *localImage) string { return l.blob(l.summary.Instances[0].Config) }
	link := func(path string) error {
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.Symlink(canary, path)
	}
	flip := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 1
		return os.WriteFile(path, data, 0o600)
	}
	for name, tc := range map[string]struct {
		spoil func(l *localImage) error
		kind  errdefs.Kind
		// packs is whether an archive can be made of it, and is spoilt in the same way.
		packs bool
	}{
		"layer of other bytes":    {func(l *localImage) error { return flip(layerOf(l)) }, errdefs.DigestMismatch, true},
		"layer too short":         {func(l *localImage) error { return os.Truncate(layerOf(l), 10) }, errdefs.DigestMismatch, true},
		"layer of a terabyte":     {func(l *localImage) error { return os.Truncate(layerOf(l), 1<<40) }, errdefs.DigestMismatch, false},
		"layer missing":           {func(l *localImage) error { return os.Remove(layerOf(l)) }, errdefs.NotFound, true},
		"layer is a link":         {func(l *localImage) error { return link(layerOf(l)) }, errdefs.NotAnImage, false},
		"config of other bytes":   {func(l *localImage) error { return flip(configOf(l)) }, errdefs.DigestMismatch, true},
		"config of a terabyte":    {func(l *localImage) error { return os.Truncate(configOf(l), 1<<40) }, errdefs.DigestMismatch, false},
		"config is a link":        {func(l *localImage) error { return link(configOf(l)) }, errdefs.NotAnImage, false},
		"manifest of other bytes": {func(l *localImage) error { return flip(l.blob(l.summary.Digest)) }, errdefs.DigestMismatch, true},
		"manifest is a link":      {func(l *localImage) error { return link(l.blob(l.summary.Digest)) }, errdefs.NotAnImage, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLocal(t, plainSpec())
			NewWithT(t).Expect(tc.spoil(&l)).To(Succeed())
			locations := l.locations()[:1]
			if tc.packs {
				l.pack(t)
				locations = l.locations()
			}
			for _, location := range locations {
				g, store := NewWithT(t), newStore(t)
				_, _, err := PullLocation(t.Context(), location, store, localConfig(t))
				g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%s: %v", location, err)
				g.Expect(err).To(MatchError(And(ContainSubstring(location), Not(ContainSubstring("CANARY")))))
				expectEmpty(t, store)
			}
		})
	}
	NewWithT(t).Expect(read(t, canary)).To(Equal("CANARY"))
}

// TestLocalURLs: a descriptor's URLs lead nowhere, whatever the transport of
// containers/image does with them.
func TestLocalURLs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	reg := newRegistry(t)
	l := newLocal(t, plainSpec())
	layer := l.summary.Instances[0].Layers[0]
	g.Expect(os.Remove(l.blob(layer.Digest))).To(Succeed())
	ref := rewriteLocal(t, &l, func(m *imgspec.Manifest) {
		m.Layers[0].URLs = []string{"http://" + reg.host + "/layer"}
	})
	_, _, err := PullLocation(t.Context(), ref, newStore(t), localConfig(t))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)
	g.Expect(reg.requests).To(BeEmpty())
}

// rewriteLocal adds a changed manifest to the layout, and returns its location.
func rewriteLocal(t *testing.T, l *localImage, change func(*imgspec.Manifest)) string {
	t.Helper()
	g := NewWithT(t)
	var m imgspec.Manifest
	g.Expect(json.Unmarshal([]byte(read(t, l.blob(l.summary.Digest))), &m)).To(Succeed())
	change(&m)
	data, err := json.Marshal(m)
	g.Expect(err).NotTo(HaveOccurred())
	d := imgspec.DescriptorEmptyJSON.Digest.Algorithm().FromBytes(data)
	writeFile(t, l.blob(d), string(data))
	index, err := json.Marshal(imgspec.Index{Manifests: []imgspec.Descriptor{{
		MediaType: m.MediaType, Digest: d, Size: int64(len(data)), Annotations: map[string]string{imgspec.AnnotationRefName: "changed"},
	}}})
	g.Expect(err).NotTo(HaveOccurred())
	writeFile(t, filepath.Join(l.dir, "index.json"), string(index))
	return "oci:" + l.dir + ":changed"
}

// TestArchiveIsNotUnpacked: a terabyte in an archive that is no part of the image costs
// nothing.
func TestArchiveIsNotUnpacked(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	const hole = 1 << 40
	l := newLocal(t, plainSpec())
	whole := read(t, l.archive)
	f, err := os.Create(l.archive)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(tar.NewWriter(f).WriteHeader(&tar.Header{Name: "blobs/sha256/" + strings.Repeat("0", 64), Size: hole})).To(Succeed())
	_, err = f.Seek(hole, io.SeekCurrent)
	g.Expect(err).NotTo(HaveOccurred())
	_, err = io.WriteString(f, whole)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Close()).To(Succeed())
	_, img, err := PullLocation(t.Context(), l.locations()[1], newStore(t), localConfig(t))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, img.LayerDirs[0], "a")).To(Equal(marker))
}

func TestLocationErrorsAreNotRetried(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, err := range []error{io.ErrUnexpectedEOF, errdefs.New(errdefs.Internal, "read blob", io.ErrUnexpectedEOF)} {
		var known *errdefs.Error
		g.Expect(registryKind(err) == errdefs.RegistryUnavailable).NotTo(Equal(errors.As(err, &known)), "%v", err)
	}
}
