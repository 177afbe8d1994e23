package cstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// MinTTL is the least time that a record stays after a pull. kubelet pulls, asks for
// the image's size and user, and creates the container: minutes on a busy node. A
// record that went in between would fail the container for no reason.
const MinTTL = 10 * time.Minute

func ttlTooShort(op string, ttl time.Duration) error {
	return errdefs.Newf(errdefs.InvalidArgument, op, "a record must stay at least %s after a pull, not %s", MinTTL, ttl)
}

// Sweep removes every record that was not pulled for the ttl, by any of its names,
// and that no container was made from. It returns those it removed. A ttl below
// MinTTL is errdefs.InvalidArgument. One that cannot be removed leaves the others.
func (s *Store) Sweep(ctx context.Context, ttl time.Duration, now time.Time) ([]imageref.Record, error) {
	if ttl < MinTTL {
		return nil, ttlTooShort("remove unused records", ttl)
	}
	records, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var removed []imageref.Record
	var failed []error
	for _, r := range records {
		if !expired(r.References, ttl, now) {
			continue
		}
		gone, err := s.sweep(ctx, r.StorageID, ttl, now)
		if ctx.Err() != nil {
			return removed, ctx.Err()
		}
		if err != nil {
			failed = append(failed, err)
		}
		if gone {
			removed = append(removed, r)
		}
	}
	return removed, errors.Join(failed...)
}

// sweep removes one record if it is still unused under the lock: a pull may have
// come in between. Whether a container holds it, containers/storage looks under its
// own lock when it removes it, so no container that is being made loses its image.
func (s *Store) sweep(ctx context.Context, id imageref.StorageID, ttl time.Duration, now time.Time) (bool, error) {
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	_, meta, err := s.find(id)
	if err == nil {
		if refs, _ := meta.Husk.references(); !expired(refs, ttl, now) {
			return false, nil
		}
		err = s.delete(id.String())
	}
	switch errdefs.KindOf(err) {
	case errdefs.NotFound, errdefs.InUse: // gone, or held by a container
		return false, nil
	default:
		return err == nil, err
	}
}

// expired reports whether the last pull by any of the names is longer ago than ttl.
func expired(refs []imageref.PulledReference, ttl time.Duration, now time.Time) bool {
	for _, p := range refs {
		if now.Sub(p.PulledAt) <= ttl {
			return false
		}
	}
	return true
}

// checkUnused reports a record that [Store.Sweep] would remove, and removes it if
// asked to. The caller holds the lock.
func (s *Store) checkUnused(img *storage.Image, meta *metadata, opts CheckOptions) (Finding, bool, error) {
	refs, _ := meta.Husk.references()
	if opts.TTL == 0 || !expired(refs, opts.TTL, opts.Now) {
		return Finding{}, false, nil
	}
	containers, err := s.store.Containers()
	if err != nil {
		return Finding{}, false, mapped("check record "+img.ID, err)
	}
	for _, c := range containers {
		if c.ImageID == img.ID {
			return Finding{}, false, nil
		}
	}
	f := finding(Unused, img, meta, fmt.Sprintf("not pulled for %s, and no container holds it", opts.TTL))
	if opts.Repair {
		s.settle(&f, nil)
	}
	return f, true, nil
}
