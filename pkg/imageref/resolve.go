package imageref

import (
	"slices"
	"strings"
)

// minPrefix is the shortest ID prefix that names an image, as in CRI-O; anything
// shorter is more likely a name.
const minPrefix = 3

// Query is a parsed image name, as CRI requests and command lines have them.
type Query struct {
	// Text is the name as the client wrote it.
	Text string
	// ID is set when the name is a full image ID, or looks like one.
	ID ImageID
	// Candidates are the references the name may mean, best first. A short name
	// can have several (registries.conf).
	Candidates []Reference
}

// NewQuery parses text. candidates are the references it may mean; they are not
// looked at when text is an image ID.
func NewQuery(text string, candidates []Reference) Query {
	q := Query{Text: text}
	if id, err := ParseImageID(text); err == nil {
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
	Records []Record
	// By is the reference that named them; zero when an image ID did.
	By Reference
}

// Resolve returns the records that the query names: by image ID newest pull
// first; by reference newest pull of that reference first; else by a prefix of
// the image ID that no other image has. These are the only rules by which a name
// finds a record.
func Resolve(records []Record, q Query) Match {
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
	if slices.ContainsFunc(found, func(r Record) bool { return r.ImageID() != found[0].ImageID() }) {
		return Match{}
	}
	return Match{Records: found}
}

// ResolveStored is [Resolve] for those who manage records: a storage ID names its
// record too. CRI clients never learn storage IDs, and must not find images by them.
func ResolveStored(records []Record, q Query) Match {
	found := Resolve(records, q)
	if i := slices.IndexFunc(records, func(r Record) bool { return r.StorageID.hex == q.ID.hex }); len(found.Records) == 0 && i >= 0 {
		found.Records = []Record{records[i]}
	}
	return found
}

func byID(records []Record, match func(string) bool) []Record {
	return sortNewest(where(records, func(r Record) bool { return match(r.ImageID().String()) }), anyReference)
}

// where returns the records that fn accepts.
func where(records []Record, fn func(Record) bool) []Record {
	var found []Record
	for i := range records {
		if fn(records[i]) {
			found = append(found, records[i])
		}
	}
	return found
}

func byReference(records []Record, ref Reference) []Record {
	match := matching(ref)
	return sortNewest(where(records, func(r Record) bool { return pulledAs(r, match) }), match)
}

// Matches reports whether ref names the record by the given pull: the same
// repository and tag, or the same repository and a digest of the image.
func Matches(rec Record, pulled PulledReference, ref Reference) bool {
	return matching(ref)(rec, pulled)
}

// matching is Matches for many records. What decides most of them comes first, and
// what has to be put together, such as a repository's name, last.
func matching(ref Reference) matcher {
	repository, d, tag := ref.Repository(), ref.Digest(), ref.Tag()
	return func(rec Record, pulled PulledReference) bool {
		if !d.IsZero() {
			return (pulled.Digest == d || rec.Manifest == d) && pulled.Reference.Repository() == repository
		}
		return tag != "" && pulled.Reference.Tag() == tag && pulled.Reference.Digest().IsZero() && pulled.Reference.Repository() == repository
	}
}

// Choose picks, among records of one image ID, the one a container means whose
// pod names the image ref: one pulled by that reference, else from the same
// repository, else the newest. An encrypted and a plain image share a config, so
// the ID alone does not decide. Records must not be empty.
func Choose(records []Record, refs []Reference) (Record, PulledReference) {
	for _, ref := range refs {
		if found := byReference(records, ref); len(found) > 0 {
			rec := found[0]
			pulled := lastPull(rec, matching(ref))
			return rec, pulled
		}
	}
	var match matcher = anyReference
	for _, ref := range refs {
		same := func(_ Record, p PulledReference) bool {
			return p.Reference.Repository() == ref.Repository()
		}
		if slices.ContainsFunc(records, func(r Record) bool { return pulledAs(r, same) }) {
			match = same
			break
		}
	}
	rec := sortNewest(slices.Clone(records), match)[0]
	pulled := lastPull(rec, match)
	return rec, pulled
}

// matcher selects pulls of a record.
type matcher func(Record, PulledReference) bool

func anyReference(Record, PulledReference) bool { return true }

// lastPull is the record's newest pull that match accepts; zero when there is none.
func lastPull(rec Record, match matcher) PulledReference {
	for _, p := range rec.NewestFirst() {
		if match(rec, p) {
			return p
		}
	}
	return PulledReference{}
}

func pulledAs(rec Record, match matcher) bool {
	return slices.ContainsFunc(rec.References, func(p PulledReference) bool { return match(rec, p) })
}

func sortNewest(records []Record, match matcher) []Record {
	slices.SortStableFunc(records, func(a, b Record) int {
		return lastPull(b, match).PulledAt.Compare(lastPull(a, match).PulledAt)
	})
	return records
}

// NewestFirst returns the pulls of a record, the last one first.
func (r Record) NewestFirst() []PulledReference {
	pulled := slices.Clone(r.References)
	slices.SortStableFunc(pulled, func(a, b PulledReference) int { return b.PulledAt.Compare(a.PulledAt) })
	return pulled
}

// TagOnly returns repo:tag of a reference that is resolved by its tag, else "". In
// repo:tag@digest the tag decides nothing, and CRI-O drops it as well.
func (r Reference) TagOnly() string {
	if !r.Digest().IsZero() {
		return ""
	}
	return r.Tagged().String()
}
