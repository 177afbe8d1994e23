// Package storetest has an in-memory [manifestonly.Store] for tests, and the
// conformance suite that it and every real store must pass.
package storetest

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/internal/refset"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Memory is a Store in memory. The zero value is empty and ready.
type Memory struct {
	mu      sync.Mutex
	records map[imageref.StorageID]imageref.Record
	inUse   map[imageref.StorageID]bool
	blobs   map[imageref.StorageID]map[digest.Digest]held
}

// held is one blob of a record.
type held struct {
	data []byte
	// through is set for an index: the repositories it came through.
	through []string
}

var (
	_ manifestonly.Store  = (*Memory)(nil)
	_ manifestonly.Holder = (*Memory)(nil)
)

// SetInUse makes the record look as if a container was made from it, or no more.
func (m *Memory) SetInUse(id imageref.StorageID, inUse bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inUse == nil {
		m.inUse = map[imageref.StorageID]bool{}
	}
	m.inUse[id] = inUse
}

// Put implements [manifestonly.Writer].
func (m *Memory) Put(ctx context.Context, img manifestonly.Image) (imageref.Record, error) {
	if err := ctx.Err(); err != nil {
		return imageref.Record{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records == nil {
		m.records = map[imageref.StorageID]imageref.Record{}
		m.blobs = map[imageref.StorageID]map[digest.Digest]held{}
	}
	record := img.Record()
	old := m.records[record.StorageID]
	record.References = refset.Merge(old.References, img.Pulled, manifestonly.MaxReferences)
	for _, index := range old.Indexes {
		if !slices.Contains(record.Indexes, index) {
			record.Indexes = append(record.Indexes, index)
			record.StoredBytes += int64(len(m.blobs[record.StorageID][index.Digest()].data))
		}
	}
	m.hold(record.StorageID, img)
	for id, other := range m.records {
		if id == record.StorageID {
			continue
		}
		if refs, changed := refset.Demote(other.References, img.Pulled.Reference); changed {
			other.References = refs
			m.records[id] = other
		}
	}
	m.records[record.StorageID] = record
	return record, nil
}

// hold keeps the blobs of an image. The caller holds mu.
func (m *Memory) hold(id imageref.StorageID, img manifestonly.Image) {
	blobs := m.blobs[id]
	if blobs == nil {
		blobs = map[digest.Digest]held{}
		m.blobs[id] = blobs
	}
	blobs[img.Manifest.Digest.Digest()] = held{data: img.Manifest.Bytes}
	blobs[img.ConfigDigest.Digest()] = held{data: img.Config}
	for _, index := range img.Indexes {
		d := index.Digest.Digest()
		blobs[d] = held{index.Bytes, append(blobs[d].through, img.Pulled.Reference.Repository())}
	}
}

// Blob implements [manifestonly.Holder].
func (m *Memory) Blob(_ context.Context, repository string, d digest.Digest) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, r := range m.records {
		b, ok := m.blobs[id][d]
		pulled := slices.ContainsFunc(r.References, func(p imageref.PulledReference) bool { return p.Reference.Repository() == repository })
		if ok && pulled && (b.through == nil || slices.Contains(b.through, repository)) {
			return slices.Clone(b.data), nil
		}
	}
	return nil, errdefs.Newf(errdefs.NotFound, "read "+d.String(), "no record of %s has it", repository)
}

// Get implements [manifestonly.Reader].
func (m *Memory) Get(_ context.Context, id imageref.StorageID) (imageref.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	record, ok := m.records[id]
	if !ok {
		return imageref.Record{}, errdefs.New(errdefs.NotFound, "record "+id.String()+" not found", nil)
	}
	return record, nil
}

// List implements [manifestonly.Reader].
func (m *Memory) List(context.Context) ([]imageref.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	records := make([]imageref.Record, 0, len(m.records))
	for _, r := range m.records {
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b imageref.Record) int {
		return cmp.Compare(a.StorageID.String(), b.StorageID.String())
	})
	return records, nil
}

// Remove implements [manifestonly.Remover].
func (m *Memory) Remove(ctx context.Context, id imageref.StorageID) error {
	if _, err := m.Get(ctx, id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inUse[id] {
		return errdefs.New(errdefs.InUse, "record "+id.String()+" is in use", nil)
	}
	delete(m.records, id)
	delete(m.blobs, id)
	return nil
}

// RemoveReference implements [manifestonly.Remover].
func (m *Memory) RemoveReference(ctx context.Context, ref imageref.Reference) error {
	record, err := manifestonly.Named(ctx, m, ref)
	if err != nil {
		return err
	}
	rest, _ := refset.Drop(record, ref)
	if len(rest) == 0 {
		return m.Remove(ctx, record.StorageID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	record.References = rest
	m.records[record.StorageID] = record
	return nil
}
