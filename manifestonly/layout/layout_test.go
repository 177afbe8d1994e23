package layout_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/layout"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const accept = `{"default":[{"type":"insecureAcceptAnything"}]}`

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	g := NewWithT(t)
	g.Expect(os.MkdirAll(filepath.Dir(path), 0o700)).To(Succeed())
	g.Expect(os.WriteFile(path, data, 0o600)).To(Succeed())
	return path
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return b
}

// blobs are all of an image by digest, but for the layers: nobody has those.
func blobs(img manifestonly.Image) map[digest.Digest][]byte {
	all := map[digest.Digest][]byte{img.ConfigDigest.Digest(): img.Config}
	for _, b := range append([]manifestonly.Blob{img.Manifest}, img.Indexes...) {
		all[b.Digest.Digest()] = b.Bytes
	}
	return all
}

// entry is how an index.json lists an image.
func entry(img manifestonly.Image, name string) imgspec.Descriptor {
	top, kind := img.Manifest, imgspec.MediaTypeImageManifest
	if len(img.Indexes) > 0 {
		top, kind = img.Indexes[0], imgspec.MediaTypeImageIndex
	}
	d := imgspec.Descriptor{MediaType: kind, Digest: top.Digest.Digest(), Size: int64(len(top.Bytes))}
	if name != "" {
		d.Annotations = map[string]string{imgspec.AnnotationRefName: name}
	}
	return d
}

// ociLayout writes images by the names they have there.
func ociLayout(t *testing.T, dir string, images map[string]manifestonly.Image) {
	t.Helper()
	index := imgspec.Index{}
	index.SchemaVersion = 2
	for name, img := range images {
		index.Manifests = append(index.Manifests, entry(img, name))
		for d, body := range blobs(img) {
			write(t, filepath.Join(dir, "blobs", "sha256", d.Encoded()), body)
		}
	}
	write(t, filepath.Join(dir, "index.json"), encode(t, index))
	write(t, filepath.Join(dir, "oci-layout"), encode(t, imgspec.ImageLayout{Version: imgspec.ImageLayoutVersion}))
}

func archiveOf(t *testing.T, dir, file string) {
	t.Helper()
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	NewWithT(t).Expect(w.AddFS(os.DirFS(dir))).To(Succeed())
	NewWithT(t).Expect(w.Close()).To(Succeed())
	write(t, file, packed.Bytes())
}

// plainDir writes what skopeo writes to dir:PATH.
func plainDir(t *testing.T, dir string, img manifestonly.Image) {
	t.Helper()
	top := img.Manifest
	if len(img.Indexes) > 0 {
		top = img.Indexes[0]
		write(t, filepath.Join(dir, img.Manifest.Digest.Digest().Encoded()+".manifest.json"), img.Manifest.Bytes)
	}
	write(t, filepath.Join(dir, "manifest.json"), top.Bytes)
	write(t, filepath.Join(dir, "version"), []byte("Directory Transport Version: 1.1\n"))
	write(t, filepath.Join(dir, img.ConfigDigest.Digest().Encoded()), img.Config)
}

func open(t *testing.T, location, policy string) (manifestonly.Image, error) {
	t.Helper()
	dir := t.TempDir()
	g := NewWithT(t)
	src, err := layout.New(location, layout.Config{PolicyPath: write(t, filepath.Join(dir, "policy.json"), []byte(policy))})
	if err != nil {
		return manifestonly.Image{}, err
	}
	img, stats, err := manifestonly.Fetch(t.Context(), manifestonly.Request{
		Name: location, Platform: imgspec.Platform{OS: "linux", Architecture: "amd64"},
	}, src, nil)
	g.Expect(stats.Requests).To(BeZero())
	return img, err
}

func TestLocations(t *testing.T) {
	t.Parallel()
	const full = "registry.test/team/app:v1"
	for _, index := range []string{"", "with an index"} {
		img := storetest.Make(t, storetest.Spec{Reference: full, Index: index, Layers: 2, Config: imgspec.ImageConfig{User: "web"}})
		other := storetest.Make(t, storetest.Spec{Reference: full, Salt: "other"})
		for title, c := range map[string]struct {
			images map[string]manifestonly.Image // nil: a plain directory
			at     string                        // in the place of PATH
			name   string
		}{
			"by a full reference": {map[string]manifestonly.Image{full: img, "other": other}, ":" + full, full},
			"the only one, named": {map[string]manifestonly.Image{full: img}, "", full},
			"by a tag":            {map[string]manifestonly.Image{"v2": img, "other": other}, ":v2", "localhost/my-image:v2"},
			"by a short name":     {map[string]manifestonly.Image{"busybox:1": img}, ":busybox:1", "localhost/my-image:latest"},
			"the only one":        {map[string]manifestonly.Image{"": img}, "", "localhost/my-image:latest"},
			"a plain directory":   {nil, "", "localhost/my-image:latest"},
		} {
			t.Run(title+index, func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "My_Image")
				locations := []string{"dir:" + dir}
				if c.images == nil {
					plainDir(t, dir, img)
				} else {
					ociLayout(t, dir, c.images)
					archiveOf(t, dir, dir+".tar")
					locations = []string{"oci:" + dir + c.at, "oci-archive:" + dir + ".tar" + c.at}
				}
				for _, location := range locations {
					g := NewWithT(t)
					g.Expect(layout.Is(location)).To(BeTrue())
					got, err := open(t, location, accept)
					g.Expect(err).NotTo(HaveOccurred(), location)
					g.Expect(got.Pulled.Reference.String()).To(Equal(c.name), location)
					g.Expect(got.Pulled.Digest).To(Equal(img.Pulled.Digest))
					g.Expect(got.Manifest).To(Equal(img.Manifest))
					g.Expect(got.Indexes).To(Equal(img.Indexes))
					g.Expect(got.Parsed).To(Equal(img.Parsed))
					g.Expect(got.Layers).To(Equal(2), "which are not there")
					_, err = manifestonly.Commit(t.Context(), got, &storetest.Memory{})
					g.Expect(err).NotTo(HaveOccurred())
				}
			})
		}
	}
}

func TestPolicyApplies(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	root := t.TempDir()
	img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"})
	ociLayout(t, filepath.Join(root, "oci"), map[string]manifestonly.Image{"": img})
	archiveOf(t, filepath.Join(root, "oci"), filepath.Join(root, "oci.tar"))
	plainDir(t, filepath.Join(root, "dir"), img)
	for _, location := range []string{"oci:" + root + "/oci", "oci-archive:" + root + "/oci.tar", "dir:" + root + "/dir"} {
		_, err := open(t, location, `{"default":[{"type":"reject"}]}`)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%s: %v", location, err)
		transport, _, _ := bytes.Cut([]byte(location), []byte(":"))
		_, err = open(t, location, `{"default":[{"type":"reject"}],"transports":{"`+string(transport)+`":{"`+root+`":[{"type":"insecureAcceptAnything"}]}}}`)
		g.Expect(err).NotTo(HaveOccurred(), location)
		_, err = open(t, location, `{`)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal), "%s: %v", location, err)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	one := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"})
	two := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v2", Salt: "two"})
	ociLayout(t, filepath.Join(root, "two"), map[string]manifestonly.Image{"one": one, "two": two})
	archiveOf(t, filepath.Join(root, "two"), filepath.Join(root, "two.tar"))
	ociLayout(t, filepath.Join(root, "bad"), map[string]manifestonly.Image{"": one})
	write(t, filepath.Join(root, "bad", "blobs", "sha256", one.ConfigDigest.Digest().Encoded()), two.Manifest.Bytes)
	ociLayout(t, filepath.Join(root, "linked"), map[string]manifestonly.Image{"": one})
	outside := filepath.Join(root, "linked", "blobs", "sha256", one.ConfigDigest.Digest().Encoded())
	NewWithT(t).Expect(os.Rename(outside, filepath.Join(root, "outside"))).To(Succeed())
	NewWithT(t).Expect(os.Symlink(filepath.Join(root, "outside"), outside)).To(Succeed())
	plainDir(t, filepath.Join(root, "gap"), one)
	NewWithT(t).Expect(os.Remove(filepath.Join(root, "gap", one.ConfigDigest.Digest().Encoded()))).To(Succeed())
	for location, want := range map[string]errdefs.Kind{
		"oci:" + root + "/nothing":             errdefs.NotFound,
		"oci:" + root + "/two:none":            errdefs.NotFound,
		"oci-archive:" + root + "/nothing.tar": errdefs.NotFound,
		"oci-archive:" + root + "/two.tar:no":  errdefs.NotFound,
		"dir:" + root + "/nothing":             errdefs.NotFound,
		"dir:" + root + "/gap":                 errdefs.NotFound,
		"oci:" + root + "/two":                 errdefs.InvalidArgument,
		"oci-archive:" + root + "/two.tar":     errdefs.InvalidArgument,
		"docker://registry.test/app":           errdefs.InvalidArgument,
		"oci:" + root + "/linked":              errdefs.NotAnImage,
		"oci:" + root + "/bad":                 errdefs.DigestMismatch,
	} {
		_, err := open(t, location, accept)
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(want), "%s: %v", location, err)
		NewWithT(t).Expect(err).To(MatchError(ContainSubstring(location)))
	}
	NewWithT(t).Expect(layout.Is("registry.test/app:v1")).To(BeFalse())
}

// A source serves the one name it was made for.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := filepath.Join(t.TempDir(), "x")
	plainDir(t, dir, storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"}))
	src, err := layout.New("dir:"+dir, layout.Config{})
	g.Expect(err).NotTo(HaveOccurred())
	_, _, err = manifestonly.Fetch(t.Context(), manifestonly.Request{Name: "registry.test/app:v1"}, src, nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
}
