package cstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/storage"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// half makes what a writer leaves that dies inside CreateImage after the first
// n big data items.
func half(t *testing.T, p *place, spec storetest.Spec, n int, seeded bool) imageref.StorageID {
	t.Helper()
	g := NewWithT(t)
	img := storetest.Make(t, spec)
	id := imageref.RecordID(img.Manifest.Digest)
	text, err := describe(img, nil).encode()
	g.Expect(err).NotTo(HaveOccurred())
	opts := &storage.ImageOptions{Metadata: text, Digest: img.Manifest.Digest.Digest()}
	for _, it := range items(img)[:n] {
		opts.BigData = append(opts.BigData, storage.ImageBigDataOption{Key: it.key, Data: it.data, Digest: it.digest})
	}
	if seeded {
		g.Expect(p.seed(id, items(img))).To(Succeed())
	}
	_, err = p.store.CreateImage(id.String(), nil, "", "", opts)
	g.Expect(err).NotTo(HaveOccurred())
	return id
}

func TestHalfRecord(t *testing.T) {
	t.Parallel()
	spec := storetest.Spec{Reference: "registry.test/app:v1", Index: "i", Signatures: [][]byte{[]byte("\xa0sig")}}
	for n := range 6 { // manifest, config, by digest, index, two signature items
		t.Run(fmt.Sprintf("%d of 6 items", n), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPlace(t, "vfs")
			whole, err := p.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/other:v1", Salt: "x"}))
			g.Expect(err).NotTo(HaveOccurred())
			id := half(t, p, spec, n, true)

			_, err = p.crioView(t.Context())
			g.Expect(err).NotTo(HaveOccurred(), "CRI-O goes on")
			_, err = p.Get(t.Context(), id)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)
			g.Expect(p.List(t.Context())).To(HaveLen(1))
			_, err = manifestonly.Named(t.Context(), p, storetest.Ref(t, spec.Reference))
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))

			// A pull makes it whole.
			rec, err := p.Put(t.Context(), storetest.Make(t, spec))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(p.Get(t.Context(), id)).To(Equal(rec))
			g.Expect(p.Remove(t.Context(), id)).To(Succeed())

			// Or the next start removes it, and it alone.
			half(t, p, spec, n, true)
			g.Expect(p.repair(t)).To(Equal(1))
			g.Expect(p.repair(t)).To(Equal(0))
			g.Expect(p.store.Exists(id.String())).To(BeFalse())
			g.Expect(p.Get(t.Context(), whole.StorageID)).To(Equal(whole))
			p.sound(t)
		})
	}
}

// This is why records are seeded: stock CRI-O fails to list any image when one
// has no manifest. Should this test fail, seeding can go.
func TestUnseededHalfRecordBlindsCRIO(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	half(t, p, storetest.Spec{Reference: "registry.test/app:v1"}, 0, false)
	_, err := p.crioView(t.Context())
	g.Expect(err).To(MatchError(os.ErrNotExist))
	g.Expect(p.repair(t)).To(Equal(1))
	_, err = p.crioView(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
}

// A writer that dies while it replaces signatures leaves a record that is whole,
// unsigned, and mended at the next start, even if a container holds it.
func TestInterruptedSignatures(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Signatures: [][]byte{[]byte("\xa0one")}})
	rec, err := p.Put(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	id := rec.StorageID.String()
	_, err = p.crio.CreateContainer("", nil, id, "", "", nil)
	g.Expect(err).NotTo(HaveOccurred())
	_, meta, err := p.find(rec.StorageID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.setMetadata(id, metadata{Husk: meta.Husk})).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(p.images, id, signaturesKey), []byte("\xa0another"), 0o600)).To(Succeed())

	_, err = p.crioView(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.repair(t)).To(Equal(1))
	p.sound(t)
	g.Expect(p.repair(t)).To(Equal(0))
	_, err = p.Put(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	p.sound(t)
}

func TestDamagedRecordIsMended(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"gone":      os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 1) },
		"changed":   func(path string) error { return os.WriteFile(path, []byte("{}"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPlace(t, "vfs")
			spec := storetest.Spec{Reference: "registry.test/app:v1"}
			rec, err := p.Put(t.Context(), storetest.Make(t, spec))
			g.Expect(err).NotTo(HaveOccurred())
			path := filepath.Join(p.images, rec.StorageID.String(), fileName(rec.ConfigDigest.String()))
			g.Expect(damage(path)).To(Succeed())

			fresh, err := Open(p.opts) // it has read nothing while all was well
			g.Expect(err).NotTo(HaveOccurred())
			_, err = fresh.Get(t.Context(), rec.StorageID)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)
			g.Expect(fresh.List(t.Context())).To(BeEmpty())
			g.Expect(p.Put(t.Context(), storetest.Make(t, spec))).To(Equal(rec), "a pull mends it")
			g.Expect(fresh.List(t.Context())).To(HaveLen(1), "seen at once")

			g.Expect(damage(path)).To(Succeed())
			report, err := p.Check(t.Context(), CheckOptions{})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(kinds(report)).To(Equal([]string{"damaged-data left"}))
			g.Expect(p.List(t.Context())).To(BeEmpty(), "what was found damaged is not shown any more")
			g.Expect(p.repair(t)).To(Equal(1))
			p.sound(t)
		})
	}
}
