package layerpull

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// StoredImage is an image whose layers are all in a store.
type StoredImage struct {
	// Reference is repository@digest, as it was pulled.
	Reference imageref.Reference
	// Manifest is the digest of the chosen instance, and ConfigDigest gives the image ID.
	Manifest     imageref.ManifestDigest
	ConfigDigest imageref.ConfigDigest
	// Layers and Bytes are as in [Image].
	Layers int
	Bytes  int64
	// PulledAt is when its pull was done, and Took how long that was.
	PulledAt time.Time
	Took     time.Duration
}

// Images returns the images of the store, the newest first. One that is removed at the
// same time is there or not.
func (s *Store) Images() ([]StoredImage, error) {
	records, err := s.records()
	if err != nil {
		return nil, err
	}
	list := make([]StoredImage, 0, len(records))
	for _, r := range records {
		bytes, err := s.size(r.DiffIDs)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, StoredImage{
			Reference: r.Reference, Manifest: r.Manifest, ConfigDigest: r.Config,
			Layers: len(r.DiffIDs), Bytes: bytes, PulledAt: r.PulledAt, Took: r.Took,
		})
	}
	slices.SortFunc(list, func(a, b StoredImage) int {
		return cmp.Or(b.PulledAt.Compare(a.PulledAt), strings.Compare(a.Reference.String(), b.Reference.String()))
	})
	return list, nil
}

// Remove removes the image that was pulled as ref, repository@digest, and every layer
// that no other image of the store has: also those that failed pulls have left for
// their next attempt. freed is the bytes that are free again. It waits until no pull is
// at work in the store; that no container has the image's layers mounted is for the
// caller to know.
//
// Errors are InvalidArgument for a ref without a digest, NotFound, Canceled and
// DeadlineExceeded, or Internal.
func (s *Store) Remove(ctx context.Context, ref imageref.Reference) (freed int64, err error) {
	op := "remove " + ref.String()
	if ref.IsZero() || ref.Digest().IsZero() {
		return 0, errdefs.Newf(errdefs.InvalidArgument, op, "not pinned to a digest")
	}
	unlock, err := s.wait(ctx, storeLock, unix.LOCK_EX)
	if err != nil {
		return 0, errdefs.New(kindOf(ctx, err), op, err)
	}
	defer unlock()
	if err := os.Remove(s.path("images", recordName(ref))); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return 0, errdefs.Newf(errdefs.NotFound, op, "it is not in this store")
		}
		return 0, errdefs.New(errdefs.Internal, op, err)
	}
	freed, err = s.collect(ctx)
	if err != nil {
		return freed, errdefs.New(kindOf(ctx, err), op, err)
	}
	return freed, nil
}

// collect removes the layers that no image has. The caller has the store to itself.
func (s *Store) collect(ctx context.Context) (freed int64, err error) {
	// A record that cannot be read may be of an image that runs: then nothing goes.
	records, err := s.records()
	if err != nil {
		return 0, err
	}
	needed := map[string]bool{}
	for _, r := range records {
		for _, d := range r.DiffIDs {
			needed[d.Encoded()] = true
		}
	}
	layers, err := os.ReadDir(s.path("layers", ""))
	if err != nil {
		return 0, storeError("list layers", err)
	}
	for _, entry := range layers {
		if needed[entry.Name()] {
			continue
		}
		size, err := s.discard(ctx, entry.Name())
		if err != nil {
			return freed, err
		}
		freed += size
	}
	return freed, nil
}

// discard removes one layer. It is no layer any more before the first of its files goes.
func (s *Store) discard(ctx context.Context, name string) (size int64, err error) {
	unlock, err := s.lock(ctx, name) // from OpenStore, which clears tmp
	if err != nil {
		return 0, err
	}
	defer unlock()
	if size, err = s.layerSize(name); err != nil {
		return 0, err
	}
	if err := os.RemoveAll(s.path("tmp", name)); err != nil {
		return 0, storeError("remove layer", err)
	}
	if err := os.Rename(s.path("layers", name), s.path("tmp", name)); err != nil {
		return 0, storeError("remove layer", err)
	}
	for _, path := range []string{s.path("tmp", name), s.path("sizes", name), s.path("roots", name)} {
		if err := os.RemoveAll(path); err != nil {
			return 0, storeError("remove layer", err)
		}
	}
	return size, nil
}

// size returns the bytes of the layers; one that is there twice counts once.
func (s *Store) size(diffIDs []digest.Digest) (sum int64, err error) {
	seen := map[digest.Digest]bool{}
	for _, d := range diffIDs {
		if seen[d] {
			continue
		}
		seen[d] = true
		size, err := s.layerSize(d.Encoded())
		if err != nil {
			return 0, err
		}
		sum += size
	}
	return sum, nil
}
