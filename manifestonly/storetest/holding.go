package storetest

import (
	"slices"
	"testing"

	. "github.com/onsi/gomega" //nolint:staticcheck // ST1001: test code, though not in a _test file: other packages run it
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

const private = "registry.test/private/app"

func indexesKept(t *testing.T, h Harness) {
	g := NewWithT(t)
	first := Make(t, Spec{Reference: app + ":v1", Index: "monday", PulledAt: at(1)})
	rec, err := h.Store.Put(t.Context(), first)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(rec.Indexes).To(Equal([]imageref.ManifestDigest{first.Indexes[0].Digest}))
	g.Expect(rec.Platform).To(Equal("linux/amd64"))
	second := Make(t, Spec{Reference: app + ":v1", Index: "tuesday", PulledAt: at(2)})
	rec, err = h.Store.Put(t.Context(), second)
	g.Expect(err).NotTo(HaveOccurred())
	both := []imageref.ManifestDigest{second.Indexes[0].Digest, first.Indexes[0].Digest}
	g.Expect(rec.Indexes).To(Equal(both), "the last pull's first")
	rec = put(t, h, Spec{Reference: app + ":plain", PulledAt: at(3)})
	g.Expect(rec.Indexes).To(Equal(both), "a pull without an index takes none away")
	g.Expect(list(t, h)).To(Equal([]imageref.Record{rec}))
}

func lastNameInUse(t *testing.T, h Harness) {
	g := NewWithT(t)
	rec := put(t, h, Spec{Reference: app + ":v1", Index: "i", PulledAt: at(1)})
	put(t, h, Spec{Reference: app + ":v2", Index: "i", PulledAt: at(2)})
	h.SetInUse(t, rec.StorageID, true)
	g.Expect(h.Store.RemoveReference(t.Context(), Ref(t, app+":v2"))).To(Succeed(), "another name is left")
	before := list(t, h)
	for _, last := range []string{app + ":v1", app + "@" + rec.Manifest.String(), app + "@" + rec.Indexes[0].String()} {
		err := h.Store.RemoveReference(t.Context(), Ref(t, last))
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse), "%s: %v", last, err)
		g.Expect(list(t, h)).To(Equal(before), "nothing was taken from it")
	}
	h.SetInUse(t, rec.StorageID, false)
	g.Expect(h.Store.RemoveReference(t.Context(), Ref(t, app+":v1"))).To(Succeed())
	g.Expect(list(t, h)).To(BeEmpty())
}

func listIsTheCallers(t *testing.T, h Harness) {
	g := NewWithT(t)
	put(t, h, Spec{Reference: app + ":v1"})
	put(t, h, Spec{Reference: app + ":v2", Salt: "other"})
	want := list(t, h)
	mine := list(t, h)
	slices.Reverse(mine)
	mine[0] = imageref.Record{}
	_ = append(mine[:1], imageref.Record{})
	g.Expect(list(t, h)).To(Equal(want))
}

// blobs checks the rule of [manifestonly.Holder]: who knows the digest of a private
// image is given nothing of it by way of another repository.
func blobs(t *testing.T, h Harness) {
	holder, ok := h.Store.(manifestonly.Holder)
	if !ok {
		t.Skip("the store is no Holder")
	}
	g := NewWithT(t)
	img := Make(t, Spec{Reference: private + ":v1", Index: "private"})
	rec, err := h.Store.Put(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	put(t, h, Spec{Reference: app + ":v1", Salt: "public"})
	index, manifest, config := img.Indexes[0].Digest.Digest(), img.Manifest.Digest.Digest(), img.ConfigDigest.Digest()
	refused := func(repository string, digests ...digest.Digest) {
		t.Helper()
		for _, d := range digests {
			body, err := holder.Blob(t.Context(), repository, d)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%s of %s: %v", d, repository, err)
			g.Expect(body).To(BeEmpty())
		}
	}
	g.Expect(holder.Blob(t.Context(), private, index)).To(Equal(img.Indexes[0].Bytes))
	g.Expect(holder.Blob(t.Context(), private, manifest)).To(Equal(img.Manifest.Bytes))
	g.Expect(holder.Blob(t.Context(), private, config)).To(Equal(img.Config))
	for _, other := range []string{"registry.test/other", "registry.test/private", private + "/app", "", "other.test/private/app"} {
		refused(other, index, manifest, config, digest.FromString("nothing"))
	}
	refused(private, digest.FromString("nothing"))

	// A repository that has the same manifest is given that, but not the index that
	// the private one puts over it.
	put(t, h, Spec{Reference: "registry.test/copy:v1", PulledAt: at(1)})
	g.Expect(holder.Blob(t.Context(), "registry.test/copy", manifest)).To(Equal(img.Manifest.Bytes))
	refused("registry.test/copy", index)
	// And nothing any more when its name is gone, or the record.
	g.Expect(h.Store.RemoveReference(t.Context(), Ref(t, "registry.test/copy:v1"))).To(Succeed())
	refused("registry.test/copy", manifest)
	g.Expect(h.Store.Remove(t.Context(), rec.StorageID)).To(Succeed())
	refused(private, index, manifest, config)
}

// over puts one more index over an image, which leads to its own and to others.
func over(t *testing.T, img manifestonly.Image, others ...imageref.ManifestDigest) manifestonly.Image {
	t.Helper()
	outer := imgspec.Index{MediaType: imgspec.MediaTypeImageIndex}
	outer.SchemaVersion = 2
	way := append([]imageref.ManifestDigest{img.Pulled.Digest}, others...)
	for _, d := range way {
		outer.Manifests = append(outer.Manifests, imgspec.Descriptor{MediaType: imgspec.MediaTypeImageIndex, Digest: d.Digest(), Size: 1})
	}
	img.Indexes = append([]manifestonly.Blob{blob(t, marshal(t, outer))}, img.Indexes...)
	img.Pulled.Digest = img.Indexes[0].Digest
	return img
}

// nestedBlobs is blobs for an index in an index: those that a pull from a repository
// led through are given to it, and no other.
func nestedBlobs(t *testing.T, h Harness) {
	holder, ok := h.Store.(manifestonly.Holder)
	if !ok {
		t.Skip("the store is no Holder")
	}
	g := NewWithT(t)
	hidden := over(t, over(t, Make(t, Spec{Reference: private + ":v1", Index: "private"})))
	_, err := h.Store.Put(t.Context(), hidden)
	g.Expect(err).NotTo(HaveOccurred())
	for i, index := range hidden.Indexes {
		g.Expect(holder.Blob(t.Context(), private, index.Digest.Digest())).To(Equal(index.Bytes), "index %d", i)
	}
	// Whoever has the manifest too puts indexes of his own over it. That these name the
	// private ones as well gives him nothing of them, for he did not come through there.
	secret := make([]imageref.ManifestDigest, 0, len(hidden.Indexes))
	for _, index := range hidden.Indexes {
		secret = append(secret, index.Digest)
	}
	for i, own := range []manifestonly.Image{
		Make(t, Spec{Reference: app + ":v1"}),
		Make(t, Spec{Reference: app + ":v2", Index: "own"}),
		over(t, Make(t, Spec{Reference: app + ":v3", Index: "own"})),
	} {
		mine := over(t, own, secret...)
		_, err := h.Store.Put(t.Context(), mine)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(holder.Blob(t.Context(), app, mine.Indexes[0].Digest.Digest())).To(Equal(mine.Indexes[0].Bytes))
		for _, d := range secret {
			_, err := holder.Blob(t.Context(), app, d.Digest())
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "attempt %d", i)
		}
	}
}
