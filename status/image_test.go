package status

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/imageref"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func manifest(c string) imageref.ManifestDigest {
	return must(imageref.ParseManifestDigest("sha256:" + strings.Repeat(c, 64)))
}

// pulledOn is a pull of ref at a minute; digest is what ref resolved to.
func pulledOn(ref string, digest imageref.ManifestDigest, minute int) imageref.PulledReference {
	return imageref.PulledReference{
		Reference: must(imageref.ParseReference(ref)), Digest: digest,
		PulledAt: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC),
	}
}

func record(m, config string, user string, refs ...imageref.PulledReference) imageref.Record {
	return imageref.Record{
		StorageID: imageref.RecordID(manifest(m)), Manifest: manifest(m), References: refs,
		ConfigDigest: must(imageref.ParseConfigDigest("sha256:" + strings.Repeat(config, 64))),
		Image:        imgspec.Image{Config: imgspec.ImageConfig{User: user, Labels: map[string]string{"k": "v"}}},
		StoredBytes:  1234, Layers: 3, EncryptedLayers: 2, LayerBytes: 1 << 30,
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	index := manifest("1")
	rec := record("2", "c", "web:staff",
		pulledOn("reg/app:old", index, 1), pulledOn("reg/app:new", index, 2), pulledOn("mirror/app@"+index.String(), index, 3))
	image := Image(rec, "husk")
	g.Expect(image.Id).To(Equal(strings.Repeat("c", 64)))
	g.Expect(image.RepoTags).To(Equal([]string{"docker.io/reg/app:new", "docker.io/reg/app:old"}))
	g.Expect(image.RepoDigests).To(Equal([]string{
		"docker.io/mirror/app@" + index.String(), "docker.io/reg/app@" + index.String(),
		"docker.io/mirror/app@" + rec.Manifest.String(), "docker.io/reg/app@" + rec.Manifest.String(),
	}))
	g.Expect(image.Size).To(BeEquivalentTo(1234))
	g.Expect(image.Spec.RuntimeHandler).To(Equal("husk"))
	g.Expect(References(rec)).To(Equal(append(image.RepoDigests, image.RepoTags...)))
	rec.StoredBytes = 0
	g.Expect(Image(rec, "husk").Size).To(BeNumerically(">", 0), "kubelet refuses a size of 0")
}

func TestUser(t *testing.T) {
	t.Parallel()
	for user, want := range map[string]*cri.Image{
		"":          {},
		":staff":    {},
		"web":       {Username: "web"},
		"web:staff": {Username: "web"},
		"0":         {Uid: &cri.Int64Value{Value: 0}},
		"1000:50":   {Uid: &cri.Int64Value{Value: 1000}},
		"7:staff":   {Uid: &cri.Int64Value{Value: 7}},
		"root":      {Username: "root"},
		"1000x":     {Username: "1000x"},
	} {
		got := Image(record("1", "c", user), "husk")
		NewWithT(t).Expect(got.Username).To(Equal(want.Username), user)
		NewWithT(t).Expect(got.Uid.String()).To(Equal(want.Uid.String()), user)
	}
}

func TestImageStatusVerbose(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	rec := record("2", "c", "web", pulledOn("reg/app:1", manifest("2"), 1))
	plain, err := ImageStatus(rec, "husk", false)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(plain.Info).To(BeEmpty())
	verbose, err := ImageStatus(rec, "husk", true)
	g.Expect(err).NotTo(HaveOccurred())
	var info struct {
		Labels    map[string]string `json:"labels"`
		ImageSpec imgspec.Image     `json:"imageSpec"`
		Husk      map[string]any    `json:"husk"`
	}
	g.Expect(json.Unmarshal([]byte(verbose.Info["info"]), &info)).To(Succeed())
	g.Expect(info.Labels).To(HaveKeyWithValue("k", "v"))
	g.Expect(info.ImageSpec.Config.User).To(Equal("web"))
	g.Expect(info.Husk).To(And(
		HaveKeyWithValue("manifestDigest", rec.Manifest.String()), HaveKeyWithValue("storageID", rec.StorageID.String()),
		HaveKeyWithValue("storedBytes", 1234.0), HaveKeyWithValue("layerBytes", float64(1<<30)),
		HaveKeyWithValue("layers", 3.0), HaveKeyWithValue("encryptedLayers", 2.0),
		HaveKeyWithValue("references", ContainElement("docker.io/reg/app:1")),
	))
}

func TestMergeImages(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	in := encoded(t, &cri.ListImagesResponse{Images: []*cri.Image{{Id: "plain"}, {Id: "record"}, {Id: "plain2"}}})
	out, err := MergeImages(in, []*cri.Image{{Id: "true"}}, map[string]bool{"record": true})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal(encoded(t, &cri.ListImagesResponse{Images: []*cri.Image{{Id: "true"}, {Id: "plain"}, {Id: "plain2"}}})))
}
