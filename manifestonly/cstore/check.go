package cstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Kind says what is wrong with a record, or with what a record left.
type Kind string

// The kinds of findings. They are part of the output of husk check.
const (
	// HalfRecord is a record whose writer died before it was whole. Repair removes it.
	HalfRecord Kind = "half-record"
	// DamagedData is stored data that is missing, short or not what its digest says.
	// Repair writes it again from a copy that the record has, or removes the record;
	// the next pull makes it anew.
	DamagedData Kind = "damaged-data"
	// SignatureMismatch is a signature file of another size than the store has on
	// record, left by a writer that died while it replaced it. Such a record counts
	// as unsigned. Repair makes the two agree.
	SignatureMismatch Kind = "signature-mismatch"
	// BadReference is a name in a record that cannot be read. Repair drops the name,
	// and the record with its last one.
	BadReference Kind = "bad-reference"
	// StrayFile is a file next to a record's data that belongs to no item of it, left
	// by a writer that died. Repair removes it.
	StrayFile Kind = "stray-file"
	// OrphanData is the data of a record that was never made: its writer died before
	// that. Repair removes it.
	OrphanData Kind = "orphan-data"
	// UnknownVersion is a record that another version of Husk wrote, or whose
	// metadata cannot be read. It is never touched.
	UnknownVersion Kind = "unknown-version"
	// Unused is a record that was not pulled for the TTL and that no container was
	// made from. Repair removes it.
	Unused Kind = "unused"
)

// Outcome says what was done about a finding.
type Outcome string

// The outcomes. A finding with Left is still there.
const (
	Left    Outcome = "left"
	Mended  Outcome = "mended"
	Removed Outcome = "removed"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Kind Kind `json:"kind"`
	// Record is the storage ID; of OrphanData the one it would have had.
	Record string `json:"record"`
	// References are the names of the record, as far as they can be read.
	References []string `json:"references"`
	// Detail says what is wrong, and after a repair that failed, why.
	Detail string `json:"detail"`
	// Done says what was done.
	Done Outcome `json:"done"`
}

// Report is the result of a check.
type Report struct {
	// Records is how many images in the store are Husk's.
	Records int `json:"records"`
	// Findings are in the order of the storage.
	Findings []Finding `json:"findings"`
}

// Left returns how many findings are still there.
func (r Report) Left() int {
	n := 0
	for _, f := range r.Findings {
		if f.Done == Left {
			n++
		}
	}
	return n
}

// CheckOptions say what to look for and what to do about it. The zero value looks
// and changes nothing.
type CheckOptions struct {
	// Repair mends or removes what is found.
	Repair bool
	// TTL is after how long without a pull a record is unused; zero for never. Less
	// than MinTTL is refused.
	TTL time.Duration
	// Now is the time to judge that by; zero for the present.
	Now time.Time
}

// Check looks at every record and at what crashed writers left behind. It takes
// Husk's lock for one record at a time, so pulls go on meanwhile, and touches
// nothing that is not Husk's. The error tells why the check could not be finished;
// a repair that failed is a finding with the outcome Left.
func (s *Store) Check(ctx context.Context, opts CheckOptions) (Report, error) {
	report := Report{Findings: []Finding{}}
	if opts.TTL != 0 && opts.TTL < MinTTL {
		return report, ttlTooShort("check records", opts.TTL)
	}
	if opts.Now.IsZero() {
		opts.Now = time.Now()
	}
	images, err := s.store.Images()
	if err != nil {
		return report, errdefs.New(errdefs.Internal, "check records", err)
	}
	for i := range images {
		img := &images[i]
		if img.ReadOnly { // from an additional store, which nobody writes
			continue
		}
		meta, err := parseMetadata(img)
		switch {
		case meta != nil:
			var found []Finding
			found, err = s.checkRecord(ctx, img.ID, opts)
			report.Findings = append(report.Findings, found...)
			report.Records++
			if err != nil {
				return report, err
			}
		case isOtherVersion(img, err):
			report.Records++
			report.Findings = append(report.Findings, otherVersion(img, err))
		}
	}
	orphans, err := s.checkOrphans(ctx, opts.Repair)
	report.Findings = append(report.Findings, orphans...)
	if report.Left() > 0 {
		s.cache.forget() // a record that was whole when it was read may be damaged now
	}
	return report, err
}

// isOtherVersion reports whether an image that is no record of this version is one
// of another: by what its metadata says, or, where that cannot be read, by its ID.
func isOtherVersion(img *storage.Image, unreadable error) bool {
	if unreadable == nil {
		meta, err := decode(img.Metadata)
		return err == nil && meta != nil && meta.Husk.Version != version
	}
	d, err := imageref.ParseManifestDigest(img.Digest.String())
	return err == nil && imageref.RecordID(d).String() == img.ID
}

func otherVersion(img *storage.Image, unreadable error) Finding {
	f := Finding{Kind: UnknownVersion, Record: img.ID, References: []string{}, Done: Left}
	if unreadable != nil {
		f.Detail = unreadable.Error()
		return f
	}
	meta, err := decode(img.Metadata)
	if err == nil && meta != nil { // isOtherVersion has said so
		f.Detail = fmt.Sprintf("it is of version %d, this husk knows version %d", meta.Husk.Version, version)
	}
	return f
}

// problem is what is wrong with a record, and how to mend it.
type problem struct {
	kind   Kind
	detail string
	// mend puts it right; nil when only removing the record helps.
	mend func() error
}

// checkRecord checks one record under the lock, so that no writer of Husk is in
// the middle of it, and repairs it if asked to.
func (s *Store) checkRecord(ctx context.Context, id string, opts CheckOptions) ([]Finding, error) {
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	img, err := s.store.Image(id)
	if errors.Is(err, storage.ErrImageUnknown) { // removed since it was listed
		return nil, nil
	} else if err != nil {
		return nil, mapped("check record "+id, err)
	}
	meta, err := parseMetadata(img)
	if err != nil || meta == nil { // replaced since: no record of this version any more
		return nil, nil
	}
	problems, err := s.problems(img, meta)
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, p := range problems {
		f := finding(p.kind, img, meta, p.detail)
		if opts.Repair {
			s.settle(&f, p.mend)
		}
		found = append(found, f)
		if p.mend == nil && f.Done == Removed { // the record, with all else that is wrong with it
			return found, nil
		}
	}
	if f, ok, err := s.checkUnused(img, meta, opts); err != nil {
		return found, err
	} else if ok {
		found = append(found, f)
	}
	return found, nil
}

func finding(kind Kind, img *storage.Image, meta *metadata, detail string) Finding {
	f := Finding{Kind: kind, Record: img.ID, References: []string{}, Detail: detail, Done: Left}
	refs, _ := meta.Husk.references()
	for _, p := range refs {
		f.References = append(f.References, p.Reference.String())
	}
	return f
}

// settle mends a finding, or removes its record where there is no way to mend it.
func (s *Store) settle(f *Finding, mend func() error) {
	outcome := Mended
	if f.Kind == StrayFile {
		outcome = Removed
	}
	if mend == nil {
		mend, outcome = func() error { return s.delete(f.Record) }, Removed
	}
	switch err := mend(); {
	case err == nil:
		f.Done = outcome
	case errdefs.Is(err, errdefs.InUse):
		f.Detail += "; a container holds the record: pull the image again, which mends it"
	default:
		f.Detail += "; repair failed: " + err.Error()
	}
}

// problems returns what is wrong with a record, the worst first.
func (s *Store) problems(img *storage.Image, meta *metadata) ([]problem, error) {
	if err := meta.halfMade(img); err != nil {
		return []problem{{kind: HalfRecord, detail: err.Error()}}, nil //nolint:nilerr // it is what was looked for
	}
	var list []problem
	for _, key := range slices.Sorted(slices.Values(img.BigDataNames)) {
		p, bad, err := s.checkItem(img, meta, key)
		if err != nil {
			return nil, err
		}
		if bad {
			list = append(list, p)
		}
	}
	refs, err := meta.Husk.references()
	switch {
	case len(refs) == 0:
		list = append(list, problem{kind: BadReference, detail: errors.Join(errNameless, err).Error()})
	case err != nil:
		list = append(list, problem{kind: BadReference, detail: err.Error(), mend: func() error {
			meta.Husk.References = encodeReferences(refs)
			return s.setMetadata(img.ID, *meta)
		}})
	}
	// What only removing the record mends comes first: it mends the rest as well.
	slices.SortStableFunc(list, func(a, b problem) int { return boolOrder(a.mend != nil) - boolOrder(b.mend != nil) })
	strays, err := s.strays(img)
	return append(list, strays...), err
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

// strays returns the files of a record's directory that are no data of it.
func (s *Store) strays(img *storage.Image) ([]problem, error) {
	dir := filepath.Join(s.images, img.ID)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) { // it is kept in another image store
		return nil, nil
	} else if err != nil {
		return nil, errdefs.New(errdefs.Internal, "check record "+img.ID, err)
	}
	var list []problem
	for _, e := range entries {
		known := func(key string) bool { return fileName(key) == e.Name() }
		if e.IsDir() || slices.ContainsFunc(img.BigDataNames, known) {
			continue // containers/storage makes no directories here, nor does Husk
		}
		path := filepath.Join(dir, e.Name())
		list = append(list, problem{kind: StrayFile, detail: path, mend: func() error { return os.Remove(path) }})
	}
	return list, nil
}
