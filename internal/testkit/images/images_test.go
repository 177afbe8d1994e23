package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

func fakeBusybox(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(path, []byte("\x7fELF not really"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// names lists the tar entries of a gzip layer in the layout at dir.
func names(t *testing.T, dir string, layer LayerSummary) []string {
	t.Helper()
	f, err := os.Open((&layout{dir: dir}).blobPath(layer.Digest))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	zr, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for tr := tar.NewReader(zr); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, hdr.Name)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spec := Spec{
		Busybox: fakeBusybox(t), Passwd: "web:x:1234:1234::/home/web:/bin/sh\n", Seed: 7,
		Layers: []Layer{{Files: []File{{Path: "/a/b/c", Content: []byte("x")}}}, {Random: 100_000}},
		Config: imgspec.ImageConfig{User: "web"},
	}
	dir, dir2 := t.TempDir(), t.TempDir()
	first, err := Build(t.Context(), dir, "one", spec)
	g.Expect(err).NotTo(HaveOccurred())
	second, err := Build(t.Context(), dir2, "two", spec)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(second).To(Equal(first))

	instance := first.Instances[0]
	g.Expect(instance.Layers).To(HaveLen(3))
	g.Expect(instance.Encrypted).To(BeZero())
	g.Expect(instance.Layers[2].Size).To(BeNumerically(">", 100_000), "filler must not compress")
	g.Expect(names(t, dir, instance.Layers[0])).To(ContainElements("bin/busybox", "bin/sh", "etc/passwd", "tmp/"))
	g.Expect(names(t, dir, instance.Layers[1])).To(Equal([]string{"a/", "a/b/", "a/b/c"}))

	spec.Seed = 8
	third, err := Build(t.Context(), dir, "three", spec)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(third.Digest).NotTo(Equal(first.Digest))
}

func TestBuildReplacesTheTag(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	for _, user := range []string{"a", "b"} {
		_, err := Build(t.Context(), dir, "latest", Spec{Config: imgspec.ImageConfig{User: user}})
		g.Expect(err).NotTo(HaveOccurred())
	}
	index, err := (&layout{dir: dir}).index()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(index.Manifests).To(HaveLen(1))
}

func TestEncryptedIndex(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	keys, dir := t.TempDir(), t.TempDir()
	g.Expect(GenerateKeys(keys)).To(Succeed())
	public, err := os.ReadFile(filepath.Join(keys, PublicKeyFile))
	g.Expect(err).NotTo(HaveOccurred())

	marker := []byte("MARKER-in-plain-sight")
	summary, err := Build(t.Context(), dir, "enc", Spec{
		Layers: []Layer{
			{Files: []File{{Path: "/secret", Content: marker}}},
			{Files: []File{{Path: "/public", Content: []byte("hello")}}},
		},
		Platforms:   []imgspec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}},
		Compression: None,
		Encrypt:     &Encryption{PublicKeys: [][]byte{public}, Layers: []int{0}},
	})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(summary.MediaType).To(Equal(imgspec.MediaTypeImageIndex))
	g.Expect(summary.Instances).To(HaveLen(2))
	for i, platform := range []string{"linux/amd64", "linux/arm64"} {
		instance := summary.Instances[i]
		g.Expect(instance.Platform).To(Equal(platform))
		g.Expect(instance.Encrypted).To(Equal(1))
		g.Expect(instance.Layers).To(HaveLen(3))
		g.Expect(isEncrypted(instance.Layers[0].MediaType)).To(BeTrue())
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		g.Expect(bytes.Contains(data, marker)).To(BeFalse(), path)
		return err
	})
	g.Expect(err).NotTo(HaveOccurred())
}

func TestBuildArtifact(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	summary, err := BuildArtifact(t.TempDir(), "a", "application/vnd.example", []byte("x"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(summary.Instances[0].Platform).To(BeEmpty())
	data, err := json.Marshal(summary)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).To(ContainSubstring(`"manifestDigest"`))
}

func TestErrors(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := Inspect(t.TempDir(), "none")
	g.Expect(err).To(MatchError(errNoTag))
	_, err = Build(t.Context(), t.TempDir(), "x", Spec{Busybox: "/nonexistent"})
	g.Expect(err).To(MatchError(os.ErrNotExist))
	_, err = Build(t.Context(), t.TempDir(), "x", Spec{Layers: []Layer{{}}, Compression: "lzma"})
	g.Expect(err).To(MatchError(ContainSubstring("unknown compression")))
}
