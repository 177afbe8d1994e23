package cstore

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// kinds lists what a report found and what was done: "kind outcome".
func kinds(r Report) []string {
	out := make([]string, 0, len(r.Findings))
	for _, f := range r.Findings {
		out = append(out, string(f.Kind)+" "+string(f.Done))
	}
	return out
}

func (p *place) check(t *testing.T, opts CheckOptions) Report {
	t.Helper()
	report, err := p.Check(t.Context(), opts)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return report
}

// repair returns how many findings were mended or removed.
func (p *place) repair(t *testing.T) int {
	t.Helper()
	report := p.check(t, CheckOptions{Repair: true})
	return len(report.Findings) - report.Left()
}

// fileOf returns where a big data item of a record is.
func (p *place) fileOf(rec imageref.Record, key string) string {
	return filepath.Join(p.images, rec.StorageID.String(), fileName(key))
}

// damage is one way in which a record can be wrong, and what Check makes of it.
type damage struct {
	do    func(g Gomega, p *place, rec imageref.Record)
	found string
	done  Outcome
	stays bool
}

func damages() map[string]damage {
	return map[string]damage{
		"no manifest": {
			func(g Gomega, p *place, rec imageref.Record) {
				g.Expect(os.Remove(p.fileOf(rec, "manifest"))).To(Succeed())
			}, "damaged-data", Mended, true,
		},
		"a short manifest by digest": {
			func(g Gomega, p *place, rec imageref.Record) {
				g.Expect(os.Truncate(p.fileOf(rec, manifestPrefix+rec.Manifest.String()), 5)).To(Succeed())
			}, "damaged-data", Mended, true,
		},
		"a signature file of another size": {
			func(g Gomega, p *place, rec imageref.Record) {
				g.Expect(os.WriteFile(p.fileOf(rec, signaturesKey), []byte("\xa0another one"), 0o600)).To(Succeed())
			}, "damaged-data", Mended, true,
		},
		"a config of the right size": {
			func(g Gomega, p *place, rec imageref.Record) {
				path := p.fileOf(rec, rec.ConfigDigest.String())
				body, err := os.ReadFile(path)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(os.WriteFile(path, bytes.ToUpper(body), 0o600)).To(Succeed())
			}, "damaged-data", Removed, false,
		},
		"an index that grew without end": {
			func(g Gomega, p *place, rec imageref.Record) {
				g.Expect(os.Truncate(p.fileOf(rec, manifestPrefix+rec.Indexes[0].String()), 1<<40)).To(Succeed())
			}, "damaged-data", Removed, false,
		},
		"a file of nobody's": {
			func(g Gomega, p *place, rec imageref.Record) {
				g.Expect(os.WriteFile(p.fileOf(rec, "manifest")+".tmp-12", []byte("x"), 0o600)).To(Succeed())
			}, "stray-file", Removed, true,
		},
		"a name that does not parse": {
			func(g Gomega, p *place, rec imageref.Record) {
				p.edit(g, rec, func(h *husk) { h.References = append(h.References, reference{"No/Name", h.Manifest, time.Now()}) })
			}, "bad-reference", Mended, true,
		},
		"no name that parses": {
			func(g Gomega, p *place, rec imageref.Record) {
				p.edit(g, rec, func(h *husk) { h.References[0].Digest = "md5:1" })
			}, "bad-reference", Removed, false,
		},
		"half of it": {
			func(g Gomega, p *place, rec imageref.Record) {
				p.edit(g, rec, func(h *husk) { h.Indexes = append(h.Indexes, "sha256:"+strings.Repeat("0", 64)) })
			}, "half-record", Removed, false,
		},
		"of a newer husk": {
			func(g Gomega, p *place, rec imageref.Record) {
				p.edit(g, rec, func(h *husk) { h.Version = version + 1 })
			}, "unknown-version", Left, true,
		},
		"metadata that is no JSON": {
			func(g Gomega, p *place, rec imageref.Record) {
				g.Expect(p.crio.SetMetadata(rec.StorageID.String(), `{"husk":`)).To(Succeed())
			}, "unknown-version", Left, true,
		},
	}
}

// TestCheck makes each kind of damage and looks at what is said and done. A check
// without repair changes nothing, whatever it finds.
func TestCheck(t *testing.T) {
	t.Parallel()
	signed := storetest.Spec{Reference: "registry.test/app:v1", Index: "i", Signatures: [][]byte{[]byte("\xa0one")}}
	for name, c := range damages() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPlace(t, "vfs")
			bystander, err := p.Put(t.Context(), storetest.Make(t, storetest.Spec{Reference: "registry.test/other:v1", Salt: "x"}))
			g.Expect(err).NotTo(HaveOccurred())
			rec, err := p.Put(t.Context(), storetest.Make(t, signed))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(p.check(t, CheckOptions{})).To(Equal(Report{Records: 2, Findings: []Finding{}}))
			c.do(g, p, rec)
			before := tree(t, p.opts.GraphRoot)

			report := p.check(t, CheckOptions{})
			g.Expect(kinds(report)).To(Equal([]string{c.found + " left"}))
			g.Expect(report.Findings[0].Record).To(Equal(rec.StorageID.String()))
			g.Expect(report.Findings[0].Detail).NotTo(BeEmpty())
			g.Expect(report.Records).To(Equal(2))
			g.Expect(tree(t, p.opts.GraphRoot)).To(Equal(before), "looking changes nothing")

			report = p.check(t, CheckOptions{Repair: true})
			g.Expect(kinds(report)).To(Equal([]string{c.found + " " + string(c.done)}))
			g.Expect(p.store.Exists(rec.StorageID.String())).To(Equal(c.stays))
			if c.done == Left {
				g.Expect(tree(t, p.opts.GraphRoot)).To(Equal(before))
				return
			}
			g.Expect(p.check(t, CheckOptions{}).Findings).To(BeEmpty())
			p.sound(t)
			if c.stays {
				g.Expect(p.Get(t.Context(), rec.StorageID)).To(Equal(rec))
			}
			g.Expect(p.Get(t.Context(), bystander.StorageID)).To(Equal(bystander))
		})
	}
}

// edit changes the metadata of a record as another program would.
func (p *place) edit(g Gomega, rec imageref.Record, change func(*husk)) {
	_, meta, err := p.find(rec.StorageID)
	g.Expect(err).NotTo(HaveOccurred())
	change(meta.Husk)
	text, err := meta.encode()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.crio.SetMetadata(rec.StorageID.String(), text)).To(Succeed())
}

// tree returns every file below root with its content, but for lock files.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	g := NewWithT(t)
	files := map[string]string{}
	g.Expect(filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".lock") {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() > 1<<20 {
			return err
		}
		body, err := os.ReadFile(path)
		files[path] = string(body)
		return err
	})).To(Succeed())
	return files
}

// What a container holds is not removed; a pull mends it.
func TestDamagedRecordInUse(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	spec := storetest.Spec{Reference: "registry.test/app:v1"}
	rec, err := p.Put(t.Context(), storetest.Make(t, spec))
	g.Expect(err).NotTo(HaveOccurred())
	_, err = p.crio.CreateContainer("", nil, rec.StorageID.String(), "", "", nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Remove(p.fileOf(rec, rec.ConfigDigest.String()))).To(Succeed())
	report := p.check(t, CheckOptions{Repair: true})
	g.Expect(kinds(report)).To(Equal([]string{"damaged-data left"}))
	g.Expect(report.Findings[0].Detail).To(ContainSubstring("pull the image again"))
	g.Expect(report.Findings[0].References).To(Equal([]string{"registry.test/app:v1"}))
	g.Expect(p.repair(t)).To(Equal(0), "and it keeps no daemon from starting")
	g.Expect(p.Put(t.Context(), storetest.Make(t, spec))).To(Equal(rec))
	g.Expect(p.check(t, CheckOptions{}).Findings).To(BeEmpty())
	p.sound(t)
}

// A writer that dies between putting the data in place and making the image leaves
// a directory that no image owns.
func TestOrphanData(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Index: "i"})
	id := imageref.RecordID(img.Manifest.Digest)
	g.Expect(p.seed(id, items(img))).To(Succeed())
	// What looks like it and is not Husk's: full pulls that CRI-O is about to make.
	for name, manifest := range map[string]string{
		img.ConfigDigest.Digest().Encoded(): string(img.Manifest.Bytes),
		strings.Repeat("a", 64):             "{}",
		strings.Repeat("b", 64):             "",
		"short":                             string(img.Manifest.Bytes),
	} {
		dir := filepath.Join(p.images, name)
		g.Expect(os.MkdirAll(dir, 0o700)).To(Succeed())
		if manifest != "" {
			g.Expect(os.WriteFile(filepath.Join(dir, "manifest"), []byte(manifest), 0o600)).To(Succeed())
		}
	}
	// Nor is a link followed out of the store, or to a place that names itself so.
	canary := filepath.Join(t.TempDir(), "canary")
	g.Expect(os.MkdirAll(canary, 0o700)).To(Succeed())
	linked := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Salt: "linked"})
	g.Expect(os.WriteFile(filepath.Join(canary, "manifest"), linked.Manifest.Bytes, 0o600)).To(Succeed())
	g.Expect(os.Symlink(canary, filepath.Join(p.images, imageref.RecordID(linked.Manifest.Digest).String()))).To(Succeed())
	before := tree(t, p.images)
	// And data that was not even ready.
	unready := filepath.Join(p.images, seedPrefix+id.String())
	g.Expect(os.MkdirAll(unready, 0o700)).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(unready, ".tmp-manifest1"), nil, 0o600)).To(Succeed())

	report := p.check(t, CheckOptions{})
	g.Expect(kinds(report)).To(Equal([]string{"orphan-data left", "orphan-data left"}))
	g.Expect(report.Findings[1].Record).To(Equal(id.String()))
	g.Expect(tree(t, p.images)).To(HaveLen(len(before) + 1))
	g.Expect(kinds(p.check(t, CheckOptions{Repair: true}))).To(Equal([]string{"orphan-data removed", "orphan-data removed"}))
	g.Expect(filepath.Join(p.images, id.String())).NotTo(BeADirectory())
	g.Expect(unready).NotTo(BeADirectory())
	g.Expect(filepath.Join(canary, "manifest")).To(BeARegularFile())
	g.Expect(tree(t, p.images)).To(HaveLen(len(before)-4), "the manifest twice, the config and the index")

	// A pull replaces what was left, and leaves no more.
	g.Expect(os.MkdirAll(unready, 0o700)).To(Succeed())
	g.Expect(p.seed(id, items(img)[:1])).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(p.images, id.String(), "more"), nil, 0o600)).To(Succeed())
	_, err := p.Put(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.check(t, CheckOptions{}).Findings).To(BeEmpty())
}

func TestUnusedRecords(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	now := time.Date(2026, 8, 2, 0, 0, 0, 0, time.UTC)
	ago := func(name string, ages ...time.Duration) imageref.Record {
		var rec imageref.Record
		for i, age := range ages {
			spec := storetest.Spec{Reference: "registry.test/" + name + ":" + strings.Repeat("v", i+1), Salt: name, PulledAt: now.Add(-age)}
			var err error
			rec, err = p.Put(t.Context(), storetest.Make(t, spec))
			g.Expect(err).NotTo(HaveOccurred())
		}
		return rec
	}
	const ttl = time.Hour
	old := ago("old", 2*ttl, ttl+time.Second)
	ago("fresh", ttl)
	ago("again", ttl-time.Second, 3*ttl) // one name is old, the other is not
	ago("future", -time.Minute)
	held := ago("held", 5*ttl)
	c, err := p.crio.CreateContainer("", nil, held.StorageID.String(), "", "", nil)
	g.Expect(err).NotTo(HaveOccurred())

	g.Expect(p.check(t, CheckOptions{Now: now}).Findings).To(BeEmpty(), "no TTL: never")
	g.Expect(p.check(t, CheckOptions{TTL: 6 * ttl, Now: now}).Findings).To(BeEmpty())
	report := p.check(t, CheckOptions{TTL: ttl, Now: now})
	g.Expect(kinds(report)).To(Equal([]string{"unused left"}))
	g.Expect(report.Findings[0].Record).To(Equal(old.StorageID.String()))
	for _, short := range []time.Duration{MinTTL - 1, time.Second, -1} {
		_, err := p.Check(t.Context(), CheckOptions{TTL: short, Now: now, Repair: true})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
		_, err = p.Sweep(t.Context(), short, now)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
	}
	g.Expect(p.List(t.Context())).To(HaveLen(5))

	g.Expect(p.Sweep(t.Context(), ttl, now)).To(Equal([]imageref.Record{old}))
	g.Expect(p.Sweep(t.Context(), ttl, now)).To(BeEmpty())
	g.Expect(p.List(t.Context())).To(HaveLen(4))
	g.Expect(p.crio.DeleteContainer(c.ID)).To(Succeed())
	g.Expect(kinds(p.check(t, CheckOptions{TTL: ttl, Now: now, Repair: true}))).To(Equal([]string{"unused removed"}))
	g.Expect(p.List(t.Context())).To(HaveLen(3))
	p.sound(t)
}

// A pull that comes while the sweep waits for the lock saves the record.
func TestSweepLooksAgainUnderTheLock(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	now := time.Now().UTC()
	spec := storetest.Spec{Reference: "registry.test/app:v1", PulledAt: now.Add(-time.Hour)}
	old, err := p.Put(t.Context(), storetest.Make(t, spec))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(expired(old.References, MinTTL, now)).To(BeTrue(), "as Sweep saw it in its list")
	spec.PulledAt = now
	_, err = p.Put(t.Context(), storetest.Make(t, spec))
	g.Expect(err).NotTo(HaveOccurred())
	gone, err := p.sweep(t.Context(), old.StorageID, MinTTL, now)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(gone).To(BeFalse())
	g.Expect(p.List(t.Context())).To(HaveLen(1))
}
