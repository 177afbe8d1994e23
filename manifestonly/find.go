package manifestonly

import (
	"slices"
	"time"

	"github.com/husk-cri/husk/manifestonly/internal/refset"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// WithImageID returns those of records that have the image ID, the last pulled
// first, as [Reader].ByImageID must; none is errdefs.NotFound.
func WithImageID(records []imageref.Record, id imageref.ImageID) ([]imageref.Record, error) {
	var found []imageref.Record
	for _, r := range records {
		if r.ImageID() == id {
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return nil, errdefs.New(errdefs.NotFound, "no layer-less image with the ID "+id.String(), nil)
	}
	slices.SortStableFunc(found, func(a, b imageref.Record) int {
		return LastPulled(b).Compare(LastPulled(a))
	})
	return found, nil
}

// WithReference returns the record that was last pulled by the name ref, as
// [Reader].ByReference must; none is errdefs.NotFound.
func WithReference(records []imageref.Record, ref imageref.Reference) (imageref.Record, error) {
	var found imageref.Record
	var last time.Time
	for _, r := range records {
		if at, ok := refset.Match(r, ref); ok && (found.StorageID.IsZero() || at.After(last)) {
			found, last = r, at
		}
	}
	if found.StorageID.IsZero() {
		return imageref.Record{}, errdefs.New(errdefs.NotFound, "no layer-less image by the name "+ref.String(), nil)
	}
	return found, nil
}
