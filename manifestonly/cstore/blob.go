package cstore

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Blob implements [manifestonly.Holder]. An index is given only to the repository
// through which it came: of two repositories that share a manifest, one may have
// an index that nobody else is to see.
func (s *Store) Blob(ctx context.Context, repository string, d digest.Digest) ([]byte, error) {
	op := "read " + d.String() + " of " + repository + " from the store"
	if err := d.Validate(); err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range v.records {
		key, ok := s.keyOf(r, repository, d)
		if !ok {
			continue
		}
		data, err := s.store.ImageBigData(r.StorageID.String(), key)
		if err == nil && d.Algorithm().FromBytes(data) == d { // else it is gone or damaged: another record may have it
			return data, nil
		}
	}
	return nil, errdefs.Newf(errdefs.NotFound, op, "no record of that repository has it")
}

// keyOf returns the big data item of the record that has the digest d, if the
// record may give it to someone whom the registry let into the repository.
func (s *Store) keyOf(r imageref.Record, repository string, d digest.Digest) (string, bool) {
	isIndex := slices.ContainsFunc(r.Indexes, func(i imageref.ManifestDigest) bool { return i.Digest() == d })
	if d != r.Manifest.Digest() && d != r.ConfigDigest.Digest() && !isIndex {
		return "", false
	}
	pulled := slices.DeleteFunc(slices.Clone(r.References), func(p imageref.PulledReference) bool {
		return p.Reference.Repository() != repository
	})
	switch {
	case len(pulled) == 0:
		return "", false
	case d == r.Manifest.Digest():
		return manifestPrefix + d.String(), true
	case d == r.ConfigDigest.Digest():
		return d.String(), true
	default:
		return manifestPrefix + d.String(), s.ledThrough(r, pulled, d)
	}
}

// ledThrough reports whether one of the pulls led through the index d. A pull is
// kept with the outermost index alone; from there the way is followed as long as it
// is the only one. Someone who lists a private index next to one of his own in an
// index has pulled through his own, and is not given the other.
func (s *Store) ledThrough(r imageref.Record, pulled []imageref.PulledReference, d digest.Digest) bool {
	for _, p := range pulled {
		next := p.Digest.Digest()
		for range r.Indexes { // the way is no longer than that
			if next == d {
				return true
			}
			var ok bool
			if next, ok = s.onlyWay(r, next); !ok {
				break
			}
		}
	}
	return false
}

// onlyWay returns the index that a pull of the record through the index at must have
// led to; false when there is none, or more than one way.
func (s *Store) onlyWay(r imageref.Record, at digest.Digest) (digest.Digest, bool) {
	if len(r.Indexes) >= maxIndexes { // some may not have been kept: who knows the way
		return "", false
	}
	body, err := s.store.ImageBigData(r.StorageID.String(), manifestPrefix+at.String())
	if err != nil || at.Algorithm().FromBytes(body) != at {
		return "", false
	}
	var index imgspec.Index
	if json.Unmarshal(body, &index) != nil {
		return "", false
	}
	known := map[digest.Digest]bool{r.Manifest.Digest(): false}
	for _, i := range r.Indexes {
		known[i.Digest()] = true
	}
	var way digest.Digest
	for _, m := range index.Manifests {
		if _, ok := known[m.Digest]; !ok || m.Digest == way {
			continue
		}
		if way != "" {
			return "", false
		}
		way = m.Digest
	}
	return way, known[way]
}
