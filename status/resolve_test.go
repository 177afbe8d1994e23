package status

import (
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
	"github.com/husk-cri/husk/pkg/imageref"
)

func TestResolvedRecord(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	parse := func(s string) imageref.ManifestDigest {
		d, err := imageref.ParseManifestDigest(digest.FromString(s).String())
		g.Expect(err).NotTo(HaveOccurred())
		return d
	}
	ref := func(s string) imageref.Reference {
		r, err := imageref.ParseReference(s)
		g.Expect(err).NotTo(HaveOccurred())
		return r
	}
	config, err := imageref.ParseConfigDigest(digest.FromString("config").String())
	g.Expect(err).NotTo(HaveOccurred())
	old, now := time.Unix(100, 5), time.Unix(200, 7)
	rec := imageref.Record{
		Manifest: parse("m"), ConfigDigest: config, Indexes: []imageref.ManifestDigest{parse("i"), parse("j")},
		Platform: "linux/arm64/v8", Layers: 3, EncryptedLayers: 2, LayerBytes: 1 << 40, StoredBytes: 4000,
		References: []imageref.PulledReference{
			{Reference: ref("r.io/a:1"), Digest: parse("i"), PulledAt: old},
			{Reference: ref("r.io/b:1"), Digest: parse("i"), PulledAt: now},
		},
	}
	rec.Image.Config.User = "web:staff"
	got := ResolvedRecord(rec, []string{"husk", "kata"})
	g.Expect(proto.Equal(got, &huskv1.Image{
		ImageId: rec.ImageID().String(),
		References: []string{
			"r.io/b@" + parse("i").String(), "r.io/a@" + parse("i").String(),
			"r.io/b@" + parse("m").String(), "r.io/a@" + parse("m").String(), "r.io/b:1", "r.io/a:1",
		},
		ManifestDigest: parse("m").String(), IndexDigests: []string{parse("i").String(), parse("j").String()},
		Platform: "linux/arm64/v8", Layers: 3, EncryptedLayers: 2, LayerBytes: 1 << 40, StoredBytes: 4000,
		User: "web:staff", RuntimeHandlers: []string{"husk", "kata"}, Source: huskv1.Source_SOURCE_RECORD, PulledAt: now.UnixNano(),
	})).To(BeTrue(), "%v", got)

	// A record without what only a newer Husk writes.
	rec = imageref.Record{Manifest: parse("m"), ConfigDigest: config}
	rec.Image.Platform = imgspec.Platform{OS: "linux", Architecture: "amd64"}
	got = ResolvedRecord(rec, nil)
	g.Expect(got.GetPlatform()).To(Equal("linux/amd64"))
	g.Expect(got.GetPulledAt()).To(BeZero())
}

func TestResolvedImage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	answer := &cri.ImageStatusResponse{
		Image: &cri.Image{Id: imageID, RepoTags: []string{"r.io/a:1"}, RepoDigests: []string{imageRef}, Size: 99, Username: "web"},
		Info: map[string]string{"info": `{"imageSpec":{"architecture":"arm","variant":"v7","os":"linux",
			"config":{"User":"web:staff"},"rootfs":{"type":"layers","diff_ids":["sha256:1","sha256:2"]}}}`},
	}
	want := &huskv1.Image{
		ImageId: imageID, References: []string{imageRef, "r.io/a:1"}, Platform: "linux/arm/v7", Layers: 2,
		StoredBytes: 99, User: "web:staff", Source: huskv1.Source_SOURCE_CRIO,
	}
	g.Expect(proto.Equal(ResolvedImage(answer), want)).To(BeTrue(), "%v", ResolvedImage(answer))
	// A CRI-O that says it in another way.
	answer.Info["info"] = "?"
	want.Platform, want.Layers, want.User = "", 0, "web"
	g.Expect(proto.Equal(ResolvedImage(answer), want)).To(BeTrue())
}
