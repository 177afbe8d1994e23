package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega" //nolint:staticcheck // ST1001: test code, though not in a _test file: other packages run it
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Harness is a store under test.
type Harness struct {
	// Store is empty.
	Store manifestonly.Store
	// SetInUse makes a container from the record, or removes it.
	SetInUse func(t *testing.T, id imageref.StorageID, inUse bool)
}

// Run runs the conformance suite; start makes a Harness for each test.
func Run(t *testing.T, start func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"put and read back":        putAndRead,
		"put is idempotent":        putTwice,
		"several references":       severalReferences,
		"a tag moves":              tagMoves,
		"an index is rebuilt":      indexRebuilt,
		"references are bounded":   bounded,
		"one ID for two manifests": sameImageID,
		"remove":                   remove,
		"remove a reference":       removeReference,
		"in use":                   inUse,
		"what is not there":        absent,
		"many writers":             concurrent,
		"a caller that gave up":    canceled,
		"signatures come and go":   signatures,
		"indexes are kept":         indexesKept,
		"the last name in use":     lastNameInUse,
		"a list is the caller's":   listIsTheCallers,
		"blobs by repository":      blobs,
		"blobs of nested indexes":  nestedBlobs,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

const app = "registry.test/team/app"

func at(minute int) time.Time { return time.Date(2026, 8, 1, 12, minute, 0, 0, time.UTC) }

func put(t *testing.T, h Harness, spec Spec) imageref.Record {
	t.Helper()
	rec, err := h.Store.Put(t.Context(), Make(t, spec))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return rec
}

func list(t *testing.T, h Harness) []imageref.Record {
	t.Helper()
	records, err := h.Store.List(t.Context())
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return records
}

// find resolves a name in the store as every user of records does.
func find(t *testing.T, h Harness, name string) []imageref.Record {
	t.Helper()
	q := imageref.NewQuery(name, nil)
	if q.ID.IsZero() {
		q = imageref.NewQuery(name, []imageref.Reference{Ref(t, name)})
	}
	return imageref.Resolve(list(t, h), q).Records
}

func names(r imageref.Record) []string {
	out := make([]string, 0, len(r.References))
	for _, p := range r.References {
		out = append(out, p.Reference.String())
	}
	return out
}

func putAndRead(t *testing.T, h Harness) {
	g := NewWithT(t)
	img := Make(t, Spec{
		Reference: app + ":v1", Index: "one", Layers: 3, Encrypted: true,
		Config: imgspec.ImageConfig{User: "web", Env: []string{"A=b"}, Cmd: []string{"/bin/app"}},
	})
	rec, err := h.Store.Put(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(rec.StorageID).To(Equal(imageref.RecordID(img.Manifest.Digest)))
	g.Expect(rec.Manifest).To(Equal(img.Manifest.Digest))
	g.Expect(rec.ImageID()).To(Equal(img.ConfigDigest.ImageID()))
	g.Expect(rec.Image).To(Equal(img.Parsed))
	g.Expect(rec.References).To(Equal([]imageref.PulledReference{img.Pulled}))
	g.Expect([]int{rec.Layers, rec.EncryptedLayers, int(rec.LayerBytes)}).To(Equal([]int{3, 3, 3000}))
	g.Expect(rec.StoredBytes).To(BeNumerically(">=", len(img.Manifest.Bytes)+len(img.Config)+len(img.Indexes[0].Bytes)))

	g.Expect(list(t, h)).To(Equal([]imageref.Record{rec}))
	g.Expect(h.Store.Get(t.Context(), rec.StorageID)).To(Equal(rec))
	g.Expect(find(t, h, rec.ImageID().String())).To(Equal([]imageref.Record{rec}))
	for _, name := range []string{
		app + ":v1",
		app + "@" + img.Indexes[0].Digest.String(),
		app + "@" + img.Manifest.Digest.String(),
	} {
		g.Expect(find(t, h, name)).To(Equal([]imageref.Record{rec}), name)
	}
	other := "registry.test/other@" + img.Manifest.Digest.String()
	g.Expect(find(t, h, other)).To(BeEmpty(), "the digest alone is not enough: whose repository?")
}

func putTwice(t *testing.T, h Harness) {
	g := NewWithT(t)
	first := put(t, h, Spec{Reference: app + ":v1", PulledAt: at(1)})
	again := put(t, h, Spec{Reference: app + ":v1", PulledAt: at(1)})
	g.Expect(again).To(Equal(first))
	later := put(t, h, Spec{Reference: app + ":v1", PulledAt: at(2)})
	g.Expect(later.References).To(HaveLen(1))
	g.Expect(later.References[0].PulledAt).To(Equal(at(2)))
	g.Expect(later.StoredBytes).To(Equal(first.StoredBytes))
	g.Expect(list(t, h)).To(HaveLen(1))
}

func severalReferences(t *testing.T, h Harness) {
	g := NewWithT(t)
	put(t, h, Spec{Reference: app + ":v1", PulledAt: at(1)})
	put(t, h, Spec{Reference: app + ":stable", PulledAt: at(2)})
	rec := put(t, h, Spec{Reference: "mirror.test/app:v1", PulledAt: at(3)})
	g.Expect(names(rec)).To(Equal([]string{"mirror.test/app:v1", app + ":stable", app + ":v1"}))
	rec = put(t, h, Spec{Reference: app + ":v1", PulledAt: at(4)})
	g.Expect(names(rec)).To(Equal([]string{app + ":v1", "mirror.test/app:v1", app + ":stable"}))
	g.Expect(list(t, h)).To(HaveLen(1))
}

func tagMoves(t *testing.T, h Harness) {
	g := NewWithT(t)
	old := put(t, h, Spec{Reference: app + ":v1", Salt: "old", PulledAt: at(1)})
	fresh := put(t, h, Spec{Reference: app + ":v1", Salt: "new", PulledAt: at(2)})
	g.Expect(find(t, h, app+":v1")[0]).To(Equal(fresh))

	moved, err := h.Store.Get(t.Context(), old.StorageID)
	g.Expect(err).NotTo(HaveOccurred())
	pinned := app + "@" + old.Manifest.String()
	g.Expect(names(moved)).To(Equal([]string{pinned}), "what was pulled keeps its digest")
	g.Expect(moved.References[0].PulledAt).To(Equal(at(1)))
	g.Expect(find(t, h, pinned)[0]).To(Equal(moved))

	// And back again.
	back := put(t, h, Spec{Reference: app + ":v1", Salt: "old", PulledAt: at(3)})
	g.Expect(names(back)).To(Equal([]string{app + ":v1", pinned}))
	g.Expect(find(t, h, app+":v1")[0]).To(Equal(back))
}

func indexRebuilt(t *testing.T, h Harness) {
	g := NewWithT(t)
	first := Make(t, Spec{Reference: app + ":v1", Index: "monday", PulledAt: at(1)})
	_, err := h.Store.Put(t.Context(), first)
	g.Expect(err).NotTo(HaveOccurred())
	rec := put(t, h, Spec{Reference: app + ":v1", Index: "tuesday", PulledAt: at(2)})
	g.Expect(list(t, h)).To(HaveLen(1), "it is the same image")
	g.Expect(names(rec)).To(Equal([]string{app + ":v1", app + "@" + first.Pulled.Digest.String()}))
	g.Expect(rec.References[0].Digest).NotTo(Equal(first.Pulled.Digest))
	g.Expect(find(t, h, first.Pulled.Pinned().String())[0]).To(Equal(rec))
}

func bounded(t *testing.T, h Harness) {
	g := NewWithT(t)
	var rec imageref.Record
	for i := range manifestonly.MaxReferences + 5 {
		rec = put(t, h, Spec{Reference: fmt.Sprintf("%s:v%d", app, i), PulledAt: at(i)})
	}
	g.Expect(rec.References).To(HaveLen(manifestonly.MaxReferences))
	g.Expect(names(rec)).NotTo(ContainElement(app+":v4"), "the oldest goes")
	g.Expect(names(rec)[0]).To(Equal(fmt.Sprintf("%s:v%d", app, manifestonly.MaxReferences+4)))
}

func sameImageID(t *testing.T, h Harness) {
	g := NewWithT(t)
	plain := put(t, h, Spec{Reference: app + ":plain", Layers: 1, PulledAt: at(1)})
	encrypted := put(t, h, Spec{Reference: app + ":encrypted", Layers: 1, Encrypted: true, PulledAt: at(2)})
	g.Expect(plain.ImageID()).To(Equal(encrypted.ImageID()))
	g.Expect(find(t, h, plain.ImageID().String())).To(Equal([]imageref.Record{encrypted, plain}))
	put(t, h, Spec{Reference: app + ":plain", Layers: 1, PulledAt: at(3)})
	found := find(t, h, plain.ImageID().String())
	g.Expect(found[0].StorageID).To(Equal(plain.StorageID), "the last pulled is first")
}

func remove(t *testing.T, h Harness) {
	g := NewWithT(t)
	rec := put(t, h, Spec{Reference: app + ":v1"})
	put(t, h, Spec{Reference: app + ":v2"})
	other := put(t, h, Spec{Reference: app + ":other", Salt: "other"})
	g.Expect(h.Store.Remove(t.Context(), rec.StorageID)).To(Succeed())
	g.Expect(list(t, h)).To(Equal([]imageref.Record{other}))
	g.Expect(errdefs.KindOf(h.Store.Remove(t.Context(), rec.StorageID))).To(Equal(errdefs.NotFound))
}

func removeReference(t *testing.T, h Harness) {
	g := NewWithT(t)
	put(t, h, Spec{Reference: app + ":v1", PulledAt: at(1)})
	rec := put(t, h, Spec{Reference: app + ":v2", PulledAt: at(2)})
	put(t, h, Spec{Reference: "mirror.test/app:v1", PulledAt: at(3)})

	g.Expect(h.Store.RemoveReference(t.Context(), Ref(t, app+":v1"))).To(Succeed())
	left, err := h.Store.Get(t.Context(), rec.StorageID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(names(left)).To(Equal([]string{"mirror.test/app:v1", app + ":v2"}))

	// A digest stands for everything it pins, in its own repository.
	g.Expect(h.Store.RemoveReference(t.Context(), Ref(t, app+"@"+rec.Manifest.String()))).To(Succeed())
	left, err = h.Store.Get(t.Context(), rec.StorageID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(names(left)).To(Equal([]string{"mirror.test/app:v1"}))

	g.Expect(h.Store.RemoveReference(t.Context(), Ref(t, "mirror.test/app:v1"))).To(Succeed())
	g.Expect(list(t, h)).To(BeEmpty(), "it goes with its last reference")
}

func inUse(t *testing.T, h Harness) {
	g := NewWithT(t)
	rec := put(t, h, Spec{Reference: app + ":v1"})
	h.SetInUse(t, rec.StorageID, true)
	g.Expect(errdefs.KindOf(h.Store.Remove(t.Context(), rec.StorageID))).To(Equal(errdefs.InUse))
	g.Expect(errdefs.KindOf(h.Store.RemoveReference(t.Context(), Ref(t, app+":v1")))).To(Equal(errdefs.InUse))
	g.Expect(list(t, h)).To(Equal([]imageref.Record{rec}), "nothing was taken from it")
	// A pull goes on meanwhile.
	put(t, h, Spec{Reference: app + ":v2", Index: "new"})
	h.SetInUse(t, rec.StorageID, false)
	g.Expect(h.Store.Remove(t.Context(), rec.StorageID)).To(Succeed())
}

func absent(t *testing.T, h Harness) {
	g := NewWithT(t)
	img := Make(t, Spec{Reference: app + ":v1"})
	id := imageref.RecordID(img.Manifest.Digest)
	_, err := h.Store.Get(t.Context(), id)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	_, err = manifestonly.Named(t.Context(), h.Store, img.Pulled.Reference)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	g.Expect(err).To(MatchError(ContainSubstring(app + ":v1")))
	g.Expect(errdefs.KindOf(h.Store.Remove(t.Context(), id))).To(Equal(errdefs.NotFound))
	g.Expect(errdefs.KindOf(h.Store.RemoveReference(t.Context(), img.Pulled.Reference))).To(Equal(errdefs.NotFound))
	g.Expect(list(t, h)).To(BeEmpty())
}

func concurrent(t *testing.T, h Harness) {
	g := NewWithT(t)
	const writers, images = 8, 4
	var wait sync.WaitGroup
	errs := make(chan error, writers*images)
	for w := range writers {
		for i := range images {
			img := Make(t, Spec{Reference: fmt.Sprintf("%s:w%d", app, w), Salt: fmt.Sprint(i), PulledAt: at(w)})
			wait.Go(func() {
				_, err := h.Store.Put(t.Context(), img)
				errs <- err
			})
		}
	}
	wait.Wait()
	close(errs)
	for err := range errs {
		g.Expect(err).NotTo(HaveOccurred())
	}
	records := list(t, h)
	g.Expect(records).To(HaveLen(images))
	tags := map[string]int{}
	for _, r := range records {
		for _, p := range r.References {
			if p.Reference.Tag() != "" {
				tags[p.Reference.Tag()]++
			}
		}
	}
	g.Expect(tags).To(HaveLen(writers))
	for tag, n := range tags {
		g.Expect(n).To(Equal(1), "tag %s is on one record", tag)
	}
}

func canceled(t *testing.T, h Harness) {
	g := NewWithT(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.Store.Put(ctx, Make(t, Spec{Reference: app + ":v1"}))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled))
	g.Expect(list(t, h)).To(BeEmpty())
}

func signatures(t *testing.T, h Harness) {
	g := NewWithT(t)
	for i, sigs := range [][][]byte{nil, {[]byte("\xa0one"), []byte("\xa0two!")}, {[]byte("\xa0other")}, nil} {
		rec := put(t, h, Spec{Reference: app + ":v1", Signatures: sigs, PulledAt: at(i)})
		g.Expect(list(t, h)).To(Equal([]imageref.Record{rec}))
	}
}
