// Package refset has the rules for the references of a record, shared by every
// store: what a pull adds, what a moved tag leaves behind, what a name matches.
package refset

import (
	"slices"
	"time"

	"github.com/husk-cri/husk/pkg/imageref"
)

// Merge returns refs after a pull by p: p first, no reference twice, at most
// limit of them. Where p's reference now resolves to something else than
// before, the pinned form of the old one stays.
func Merge(refs []imageref.PulledReference, p imageref.PulledReference, limit int) []imageref.PulledReference {
	if i := index(refs, p.Reference); i >= 0 && refs[i].Digest != p.Digest {
		refs, _ = Demote(refs, p.Reference)
	}
	merged := []imageref.PulledReference{p}
	for _, r := range refs {
		if !same(r.Reference, p.Reference) {
			merged = append(merged, r)
		}
	}
	return merged[:min(len(merged), limit)]
}

// Demote returns refs of a record that lost the tag ref to another image: the
// tag becomes repo@digest. The second result is false when nothing changed.
func Demote(refs []imageref.PulledReference, ref imageref.Reference) ([]imageref.PulledReference, bool) {
	i := index(refs, ref)
	if i < 0 || ref.Tag() == "" {
		return refs, false
	}
	old := refs[i]
	old.Reference = old.Pinned()
	rest := slices.Delete(slices.Clone(refs), i, i+1)
	if index(rest, old.Reference) >= 0 {
		return rest, true
	}
	return slices.Insert(rest, i, old), true
}

// Drop returns refs without every reference that ref names.
func Drop(record imageref.Record, ref imageref.Reference) (rest []imageref.PulledReference, dropped bool) {
	rest = slices.DeleteFunc(slices.Clone(record.References), func(p imageref.PulledReference) bool {
		return names(record, p, ref)
	})
	return rest, len(rest) < len(record.References)
}

// Match returns when the record was last pulled by a reference that ref names.
func Match(record imageref.Record, ref imageref.Reference) (at time.Time, ok bool) {
	for _, p := range record.References {
		if names(record, p, ref) && (!ok || p.PulledAt.After(at)) {
			at, ok = p.PulledAt, true
		}
	}
	return at, ok
}

// names reports whether ref names the pull p: the very reference or, for a
// digest, the same repository with what p resolved to: its index or manifest.
func names(record imageref.Record, p imageref.PulledReference, ref imageref.Reference) bool {
	d := ref.Digest()
	if d.IsZero() {
		return same(p.Reference, ref)
	}
	return p.Reference.Repository() == ref.Repository() && (p.Digest == d || record.Manifest == d)
}

func same(a, b imageref.Reference) bool { return a.String() == b.String() }

func index(refs []imageref.PulledReference, ref imageref.Reference) int {
	return slices.IndexFunc(refs, func(p imageref.PulledReference) bool { return same(p.Reference, ref) })
}
