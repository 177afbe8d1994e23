package status

import (
	"slices"
	"strings"

	"github.com/husk-cri/husk/pkg/imageref"
)

// minPrefix is the shortest ID prefix that names an image, as in CRI-O; anything
// shorter is more likely a name.
const minPrefix = 3

// Query is a parsed image name of a CRI request.
type Query struct {
	// Text is the name as the client wrote it.
	Text string
	// ID is set when the name is a full image ID.
	ID imageref.ImageID
	// Candidates are the references the name may mean, best first. A short name
	// can have several (registries.conf).
	Candidates []imageref.Reference
}

// NewQuery parses text. candidates are the references it may mean; they are not
// looked at when text is an image ID.
func NewQuery(text string, candidates []imageref.Reference) Query {
	q := Query{Text: text}
	if id, err := imageref.ParseImageID(text); err == nil {
		q.ID = id
		return q
	}
	q.Candidates = candidates
	return q
}

// IsIDPrefix reports whether the name may be an abbreviated image ID.
func (q Query) IsIDPrefix() bool {
	return len(q.Text) >= minPrefix && strings.Trim(q.Text, "0123456789abcdef") == ""
}

// Match is what a query names.
type Match struct {
	// Records, best first; empty when the query names none.
	Records []imageref.Record
	// By is the reference that named them; zero when an image ID did.
	By imageref.Reference
}

// Resolve returns the records that the query names: by image ID newest pull
// first; by reference newest pull of that reference first; else by a prefix of
// the image ID that no other image has.
func Resolve(records []imageref.Record, q Query) Match {
	if !q.ID.IsZero() {
		return Match{Records: byID(records, func(id string) bool { return id == q.ID.String() })}
	}
	for _, ref := range q.Candidates {
		if found := byReference(records, ref); len(found) > 0 {
			return Match{Records: found, By: ref}
		}
	}
	if !q.IsIDPrefix() {
		return Match{}
	}
	found := byID(records, func(id string) bool { return strings.HasPrefix(id, q.Text) })
	if slices.ContainsFunc(found, func(r imageref.Record) bool { return r.ImageID() != found[0].ImageID() }) {
		return Match{}
	}
	return Match{Records: found}
}

func byID(records []imageref.Record, match func(string) bool) []imageref.Record {
	found := slices.DeleteFunc(slices.Clone(records), func(r imageref.Record) bool { return !match(r.ImageID().String()) })
	return sortNewest(found, anyReference)
}

func byReference(records []imageref.Record, ref imageref.Reference) []imageref.Record {
	match := func(r imageref.Record, p imageref.PulledReference) bool { return Matches(r, p, ref) }
	found := slices.DeleteFunc(slices.Clone(records), func(r imageref.Record) bool { return !pulledAs(r, match) })
	return sortNewest(found, match)
}

// Matches reports whether ref names the record by the given pull: the same
// repository and tag, or the same repository and a digest of the image.
func Matches(rec imageref.Record, pulled imageref.PulledReference, ref imageref.Reference) bool {
	if pulled.Reference.Repository() != ref.Repository() {
		return false
	}
	if d := ref.Digest(); !d.IsZero() {
		return pulled.Digest == d || rec.Manifest == d
	}
	return tagOf(ref) != "" && tagOf(pulled.Reference) == tagOf(ref)
}

// Choose picks, among records of one image ID, the one a container means whose
// pod names the image ref: one pulled by that reference, else from the same
// repository, else the newest. An encrypted and a plain image share a config, so
// the ID alone does not decide. Records must not be empty.
func Choose(records []imageref.Record, refs []imageref.Reference) (imageref.Record, imageref.PulledReference) {
	for _, ref := range refs {
		if found := byReference(records, ref); len(found) > 0 {
			rec := found[0]
			pulled, _ := lastPull(rec, func(r imageref.Record, p imageref.PulledReference) bool { return Matches(r, p, ref) })
			return rec, pulled
		}
	}
	var match matcher = anyReference
	for _, ref := range refs {
		same := func(_ imageref.Record, p imageref.PulledReference) bool {
			return p.Reference.Repository() == ref.Repository()
		}
		if slices.ContainsFunc(records, func(r imageref.Record) bool { return pulledAs(r, same) }) {
			match = same
			break
		}
	}
	rec := sortNewest(slices.Clone(records), match)[0]
	pulled, _ := lastPull(rec, match)
	return rec, pulled
}

// matcher selects pulls of a record.
type matcher func(imageref.Record, imageref.PulledReference) bool

func anyReference(imageref.Record, imageref.PulledReference) bool { return true }

// lastPull is the record's newest pull that match accepts; false when there is none.
func lastPull(rec imageref.Record, match matcher) (imageref.PulledReference, bool) {
	for _, p := range newestFirst(rec) {
		if match(rec, p) {
			return p, true
		}
	}
	return imageref.PulledReference{}, false
}

func pulledAs(rec imageref.Record, match matcher) bool {
	_, ok := lastPull(rec, match)
	return ok
}

func sortNewest(records []imageref.Record, match matcher) []imageref.Record {
	slices.SortStableFunc(records, func(a, b imageref.Record) int {
		pa, _ := lastPull(a, match)
		pb, _ := lastPull(b, match)
		return pb.PulledAt.Compare(pa.PulledAt)
	})
	return records
}
