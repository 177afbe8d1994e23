package cstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// other opens the place as another process would: with its own run root, so that
// it shares nothing in memory but the lock files.
func (p *place) other(t *testing.T) *Store {
	t.Helper()
	opts := p.opts
	opts.RunRoot = t.TempDir()
	s, err := Open(opts)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return s
}

func TestConfigIsReadOnce(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	rec, err := p.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"}))
	g.Expect(err).NotTo(HaveOccurred())
	want, err := p.List(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	config := filepath.Join(p.images, rec.StorageID.String(), fileName(rec.ConfigDigest.String()))
	hidden := config + ".away"
	g.Expect(os.Rename(config, hidden)).To(Succeed())
	g.Expect(p.List(t.Context())).To(Equal(want), "nothing has changed, so no file is read")
	// Also when images changed, as long as it was not this one.
	_, err = p.crio.CreateImage("", []string{"crio.test/full:v1"}, "", "", nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.List(t.Context())).To(Equal(want))
	g.Expect(p.Get(t.Context(), rec.StorageID)).To(Equal(want[0]))
	// What is said of this one has changed: it is read again.
	g.Expect(p.crio.SetMetadata(rec.StorageID.String(), p.cache.view.entries[rec.StorageID.String()].metadata+" ")).To(Succeed())
	g.Expect(p.List(t.Context())).To(BeEmpty())
	g.Expect(os.Rename(hidden, config)).To(Succeed())
	g.Expect(p.List(t.Context())).To(Equal(want), "what could not be read is looked at again")
}

func TestOtherProcessesAreSeenAtOnce(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		second := p.other(t)
		for i := range 5 {
			rec, err := second.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: fmt.Sprintf("registry.test/app:v%d", i), Salt: fmt.Sprint(i)}))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(p.List(t.Context())).To(HaveLen(i + 1))
			g.Expect(p.Get(t.Context(), rec.StorageID)).To(Equal(rec))
			again, err := second.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/app:moving", Salt: fmt.Sprint(i)}))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(p.Get(t.Context(), rec.StorageID)).To(Equal(again))
		}
		records, err := p.List(t.Context())
		g.Expect(err).NotTo(HaveOccurred())
		for i, r := range records { // as crio wipe does
			_, err := p.crio.DeleteImage(r.StorageID.String(), true)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(p.List(t.Context())).To(HaveLen(4 - i))
			_, err = p.Get(t.Context(), r.StorageID)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
		}
		g.Expect(p.cache.view.entries).To(BeEmpty(), "the cache holds what the store holds")
	})
}

// A reset of the storage removes everything below the graph root, Husk's lock
// included. The store goes on without being opened again.
func TestStorageReset(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		spec := storetest.Spec{Reference: "registry.test/app:v1", Index: "i"}
		rec, err := p.Put(t.Context(), storetest.Make(t, spec))
		g.Expect(err).NotTo(HaveOccurred())
		release, err := p.lock.Acquire(t.Context()) // a writer that is in the middle of it
		g.Expect(err).NotTo(HaveOccurred())
		entries, err := os.ReadDir(p.opts.GraphRoot)
		g.Expect(err).NotTo(HaveOccurred())
		for _, e := range entries {
			g.Expect(os.RemoveAll(filepath.Join(p.opts.GraphRoot, e.Name()))).To(Succeed())
		}
		release()
		g.Expect(p.List(t.Context())).To(BeEmpty())
		_, err = p.Get(t.Context(), rec.StorageID)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
		again, err := p.Put(t.Context(), storetest.Make(t, spec))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(again).To(Equal(rec))
		g.Expect(p.List(t.Context())).To(Equal([]imageref.Record{rec}))
		g.Expect(p.Remove(t.Context(), rec.StorageID)).To(Succeed())
	})
}

// Images may come from further stores, which have lock files of their own.
func TestAdditionalStore(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	further := newPlace(t, "vfs")
	rec, err := further.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"}))
	g.Expect(err).NotTo(HaveOccurred())
	root := t.TempDir()
	// A copy: one process opens a store either for writing or only to read it.
	there := filepath.Join(root, "further")
	g.Expect(os.CopyFS(there, os.DirFS(further.opts.GraphRoot))).To(Succeed())
	s, err := Open(Options{
		GraphRoot: filepath.Join(root, "graph"), RunRoot: filepath.Join(root, "run"), Driver: "vfs",
		DriverOptions: []string{"vfs.imagestore=" + there},
	})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.cache.changes).To(BeNil())
	g.Expect(s.List(t.Context())).To(Equal([]imageref.Record{rec}))
	report, err := s.Check(t.Context(), CheckOptions{Repair: true})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(report.Findings).To(BeEmpty())
	g.Expect(further.Remove(t.Context(), rec.StorageID)).To(Succeed())
	for _, name := range []string{"images.json", "images.lock"} {
		body, err := os.ReadFile(filepath.Join(further.images, name))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(os.WriteFile(filepath.Join(there, "vfs-images", name), body, 0o600)).To(Succeed())
	}
	g.Expect(s.List(t.Context())).To(BeEmpty())
}
