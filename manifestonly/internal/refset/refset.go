// Package refset has the rules for the references of a record, shared by every
// store: what a pull adds, what a moved tag leaves behind.
package refset

import (
	"slices"

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
		return imageref.Matches(record, p, ref)
	})
	return rest, len(rest) < len(record.References)
}

func same(a, b imageref.Reference) bool { return a.String() == b.String() }

func index(refs []imageref.PulledReference, ref imageref.Reference) int {
	return slices.IndexFunc(refs, func(p imageref.PulledReference) bool { return same(p.Reference, ref) })
}
