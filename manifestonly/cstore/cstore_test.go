package cstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	istorage "github.com/containers/image/v5/storage"
	"github.com/containers/image/v5/types"
	"github.com/containers/storage"
	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// place is a graph root that Husk and a stand-in for CRI-O share.
type place struct {
	*Store
	opts Options
	// crio has the same graph root through a handle of its own: another run root
	// keeps containers/storage from handing out the same one, so that it sees
	// only what is on disk, as another process does.
	crio storage.Store
}

func newPlace(t *testing.T, driver string) *place {
	t.Helper()
	g := NewWithT(t)
	if driver == "overlay" && os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	p := &place{opts: Options{GraphRoot: filepath.Join(root, "graph"), RunRoot: filepath.Join(root, "run"), Driver: driver}}
	var err error
	p.crio, err = storage.GetStore(storage.StoreOptions{
		GraphRoot: p.opts.GraphRoot, RunRoot: filepath.Join(root, "crio-run"), GraphDriverName: driver,
		GraphDriverOptions: map[string][]string{"overlay": {"overlay.skip_mount_home=true"}}[driver],
	})
	g.Expect(err).NotTo(HaveOccurred())
	p.Store, err = Open(p.opts)
	g.Expect(err).NotTo(HaveOccurred())
	return p
}

// crioView reads every image as stock CRI-O's ListImages does: one that cannot
// be read fails them all (internal/storage/image.go, buildImageCacheItem).
func (p *place) crioView(ctx context.Context) (map[string]*imgspec.Image, error) {
	images, err := p.crio.Images()
	if err != nil {
		return nil, err
	}
	configs := map[string]*imgspec.Image{}
	for _, img := range images {
		ref, err := istorage.Transport.NewStoreReference(p.crio, nil, img.ID)
		if err != nil {
			return nil, err
		}
		full, err := ref.NewImage(ctx, &types.SystemContext{})
		if err != nil {
			return nil, fmt.Errorf("read image %s: %w", img.ID, err)
		}
		config, err := full.OCIConfig(ctx)
		if err == nil {
			_, err = full.Inspect(ctx)
		}
		if err == nil {
			_, err = full.Size()
		}
		if err == nil {
			_, err = full.Signatures(ctx) // as its check at CreateContainer does
		}
		if err := errors.Join(err, full.Close()); err != nil {
			return nil, fmt.Errorf("read image %s: %w", img.ID, err)
		}
		configs[img.ID] = config
	}
	return configs, nil
}

// sound fails the test if containers/storage finds anything wrong.
func (p *place) sound(t *testing.T) {
	t.Helper()
	g := NewWithT(t)
	report, err := p.crio.Check(storage.CheckEverything())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(report.Images).To(BeEmpty())
	g.Expect(report.Layers).To(BeEmpty())
	g.Expect(report.Containers).To(BeEmpty())
}

func drivers(t *testing.T, test func(t *testing.T, p *place)) {
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			test(t, newPlace(t, driver))
		})
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t *testing.T) storetest.Harness {
				p := newPlace(t, driver)
				t.Cleanup(func() { p.sound(t) })
				containers := map[imageref.StorageID]string{}
				return storetest.Harness{Store: p, SetInUse: func(t *testing.T, id imageref.StorageID, inUse bool) {
					t.Helper()
					if !inUse {
						NewWithT(t).Expect(p.crio.DeleteContainer(containers[id])).To(Succeed())
						return
					}
					c, err := p.crio.CreateContainer("", nil, id.String(), "", "", nil)
					NewWithT(t).Expect(err).NotTo(HaveOccurred())
					containers[id] = c.ID
				}}
			})
		})
	}
}

func TestCRIOReadsARecord(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		sigs := [][]byte{[]byte("\xa0simple"), []byte("\x00sigstore-json\n{\"mimeType\":\"m\",\"payload\":\"cA==\",\"annotations\":{\"a\":\"b\"}}")}
		img := storetest.Make(t, storetest.Spec{
			Reference: "registry.test/app:v1", Index: "i", Layers: 2, Encrypted: true, Signatures: sigs,
			Config: imgspec.ImageConfig{User: "web", Entrypoint: []string{"/app"}, Labels: map[string]string{"l": "v"}, StopSignal: "SIGUSR1"},
		})
		rec, err := p.Put(t.Context(), img)
		g.Expect(err).NotTo(HaveOccurred())

		view, err := p.crioView(t.Context())
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(view[rec.StorageID.String()].Config).To(Equal(img.Parsed.Config))

		ref, err := istorage.Transport.NewStoreReference(p.crio, nil, rec.StorageID.String())
		g.Expect(err).NotTo(HaveOccurred())
		src, err := ref.NewImageSource(t.Context(), nil)
		g.Expect(err).NotTo(HaveOccurred())
		defer func() { g.Expect(src.Close()).To(Succeed()) }()
		manifest, _, err := src.GetManifest(t.Context(), nil)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(manifest).To(Equal(img.Manifest.Bytes))
		for _, d := range []imageref.ManifestDigest{img.Manifest.Digest, img.Indexes[0].Digest} {
			digest := d.Digest()
			_, _, err = src.GetManifest(t.Context(), &digest)
			g.Expect(err).NotTo(HaveOccurred(), "by digest %s", d)
		}
		// The public method leaves sigstore out; that both were parsed is what counts.
		instance := img.Manifest.Digest.Digest()
		g.Expect(src.GetSignatures(t.Context(), nil)).To(Equal(sigs[:1]))
		g.Expect(src.GetSignatures(t.Context(), &instance)).To(Equal(sigs[:1]))

		stored, err := p.crio.Image(rec.StorageID.String())
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(stored.Names).To(BeEmpty())
		g.Expect(stored.TopLayer).To(BeEmpty())
		g.Expect(stored.Digest).To(Equal(img.Manifest.Digest.Digest()))
		g.Expect(stored.ID).NotTo(Equal(rec.ImageID().String()))
		g.Expect(p.crio.Layers()).To(BeEmpty())
		_, err = p.crio.Lookup("registry.test/app:v1")
		g.Expect(err).To(MatchError(storage.ErrLayerUnknown), "no name leads to it")
		p.sound(t)
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(mounts)).NotTo(ContainSubstring(p.opts.GraphRoot), "opening mounts nothing")
	})
}

// Signatures and their sizes are written apart: whatever the order of pulls, the
// two agree, for CRI-O fails on a record where they do not.
func TestSignaturesAgreeWithTheirSizes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	for _, sigs := range [][][]byte{{[]byte("\xa0one")}, {[]byte("\xa0longer one"), []byte("\xa0two")}, {[]byte("\xa0short")}, nil, {[]byte("\xa0again")}} {
		img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Signatures: sigs})
		rec, err := p.Put(t.Context(), img)
		g.Expect(err).NotTo(HaveOccurred())
		ref, err := istorage.Transport.NewStoreReference(p.crio, nil, rec.StorageID.String())
		g.Expect(err).NotTo(HaveOccurred())
		src, err := ref.NewImageSource(t.Context(), nil)
		g.Expect(err).NotTo(HaveOccurred())
		got, err := src.GetSignatures(t.Context(), nil)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(got).To(HaveLen(len(sigs)))
		g.Expect(src.Close()).To(Succeed())
	}
	p.sound(t)
}

// Everything that is not a record of this version is left alone.
func TestForeignImages(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"})
	id := imageref.RecordID(img.Manifest.Digest)
	text, err := describe(img, nil).encode()
	g.Expect(err).NotTo(HaveOccurred())
	newer := strings.Replace(text, `"version":1`, `"version":2`, 1)
	for name, c := range map[string]struct{ id, metadata string }{
		"CRI-O's":                   {strings.Repeat("a", 64), `{"signature-sizes":[]}`},
		"half a pull of CRI-O's":    {strings.Repeat("b", 64), ``},
		"the metadata, another ID":  {strings.Repeat("c", 64), text},
		"broken metadata":           {strings.Repeat("d", 64), `{"husk":`},
		"metadata of other meaning": {strings.Repeat("e", 64), `{"husk":null,"labels":["husk"]}`},
		"of a newer husk":           {id.String(), newer},
	} {
		_, err := p.crio.CreateImage(c.id, nil, "", c.metadata, nil)
		g.Expect(err).NotTo(HaveOccurred(), name)
	}
	before, err := p.crio.Images()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.repair(t)).To(Equal(0))
	g.Expect(p.List(t.Context())).To(BeEmpty())
	_, err = p.Put(t.Context(), img)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unsupported), "%v", err)
	g.Expect(errdefs.KindOf(p.Remove(t.Context(), id))).To(Equal(errdefs.NotFound))
	g.Expect(errdefs.KindOf(p.Remove(t.Context(), imageref.StorageID{}))).To(Equal(errdefs.InvalidArgument))
	g.Expect(p.crio.Images()).To(Equal(before))
}

func TestIndexesAreBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	for i := range maxIndexes + 3 {
		img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Index: fmt.Sprint(i)})
		rec, err := p.Put(t.Context(), img)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(rec.References[0].Digest).To(Equal(img.Indexes[0].Digest))
		if i == maxIndexes+2 {
			stored, err := p.crio.Image(rec.StorageID.String())
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(stored.BigDataNames).To(HaveLen(3 + maxIndexes))
		}
	}
	p.sound(t)
}

func TestOpenNeedsRoots(t *testing.T) {
	t.Parallel()
	_, err := Open(Options{Driver: "vfs"})
	NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
}

func TestFileNameIsThatOfStorage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	rec, err := p.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Index: "i", Signatures: [][]byte{[]byte("\xa0s")}}))
	g.Expect(err).NotTo(HaveOccurred())
	stored, err := p.crio.Image(rec.StorageID.String())
	g.Expect(err).NotTo(HaveOccurred())
	entries, err := os.ReadDir(filepath.Join(p.images, stored.ID))
	g.Expect(err).NotTo(HaveOccurred())
	want := make([]string, 0, len(stored.BigDataNames))
	for _, key := range stored.BigDataNames {
		want = append(want, fileName(key))
	}
	got := make([]string, 0, len(entries))
	for _, e := range entries {
		got = append(got, e.Name())
	}
	g.Expect(got).To(ConsistOf(want), "seeding wrote the very files of containers/storage, and no more")
}
