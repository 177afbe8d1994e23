package cstore

import (
	"testing"

	"github.com/containers/storage"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// hold stores img as CRI-O does after a full pull: under its image ID, with names
// and a top layer, its big data as containers/image writes it.
func (p *place) hold(t *testing.T, img manifestonly.Image, names ...string) {
	t.Helper()
	g := NewWithT(t)
	layer, err := p.crio.CreateLayer("", "", nil, "", false, nil)
	g.Expect(err).NotTo(HaveOccurred())
	meta := metadata{SignatureSizes: sizes(img.Signatures)}
	meta.SignaturesSizes = map[digest.Digest][]int{img.Manifest.Digest.Digest(): meta.SignatureSizes}
	text, err := meta.encode()
	g.Expect(err).NotTo(HaveOccurred())
	opts := &storage.ImageOptions{Digest: img.Manifest.Digest.Digest()}
	for _, it := range items(img) {
		opts.BigData = append(opts.BigData, storage.ImageBigDataOption{Key: it.key, Data: it.data, Digest: it.digest})
	}
	_, err = p.crio.CreateImage(img.ConfigDigest.ImageID().String(), names, layer.ID, text, opts)
	g.Expect(err).NotTo(HaveOccurred())
}

func (p *place) pullHeld(t *testing.T, img manifestonly.Image, name string) (manifestonly.Result, error) {
	t.Helper()
	return manifestonly.Pull(t.Context(), manifestonly.Request{Name: name}, p.Held(img.ConfigDigest.ImageID()), p)
}

func TestHeldImageBecomesARecord(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]storetest.Spec{
		"manifest": {Reference: "registry.test/app:v1", Layers: 2, Signatures: [][]byte{[]byte("one"), []byte("second")}},
		"index":    {Reference: "registry.test/app:v1", Layers: 2, Index: "i"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPlace(t, "vfs")
			img := storetest.Make(t, spec)
			p.hold(t, img, "registry.test/app:v1")
			top := img.Manifest.Digest
			if len(img.Indexes) > 0 {
				top = img.Indexes[0].Digest
			}
			for _, name := range []string{"registry.test/app:v1", "registry.test/app@" + top.String()} {
				got, err := p.pullHeld(t, img, name)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(got.Record.ImageID()).To(Equal(img.ConfigDigest.ImageID()))
				g.Expect(got.Record.Layers).To(Equal(2))
				g.Expect(got.Pulled.Pinned().String()).To(Equal("registry.test/app@" + top.String()))
			}
			g.Expect(p.List(t.Context())).To(HaveLen(1))
		})
	}
}

func TestHeldRefuses(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"})
	other := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Salt: "other"})
	_, err := p.pullHeld(t, img, "registry.test/app:v1")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "nothing is held: %v", err)
	p.hold(t, img, "registry.test/app:v1")
	for name, kind := range map[string]errdefs.Kind{
		"elsewhere.test/app:v1":                               errdefs.NotFound, // it never came from there
		"registry.test/app@" + other.Manifest.Digest.String(): errdefs.NotFound,
		"No/Reference":                                        errdefs.InvalidArgument,
	} {
		_, err := p.pullHeld(t, img, name)
		g.Expect(errdefs.KindOf(err)).To(Equal(kind), "%s: %v", name, err)
	}
	g.Expect(p.List(t.Context())).To(BeEmpty())
	_, err = p.Put(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	_, err = manifestonly.Pull(t.Context(), manifestonly.Request{Name: "registry.test/app:v1"}, held{store: p.store}, p)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "no image ID is no prefix of all")
}
