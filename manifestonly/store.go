package manifestonly

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// MaxReferences bounds the names kept with one record: a tag that is rebuilt
// over the same manifest forever must not grow the image database forever. The
// oldest is dropped.
const MaxReferences = 64

// Writer commits images. It is all that [Pull] needs of a store.
type Writer interface {
	// Put stores the image as a record, or adds what is new to the record that
	// exists: the reference, the time of the pull, the index, the signatures. A
	// tag that another record had moves here; that record keeps repo@digest. Put
	// is idempotent, and leaves nothing half made whenever it is interrupted.
	Put(ctx context.Context, img Image) (imageref.Record, error)
}

// Reader finds records. A record that is half made does not exist for it. What
// is not there is errdefs.NotFound.
type Reader interface {
	// Get returns the record with this storage ID.
	Get(ctx context.Context, id imageref.StorageID) (imageref.Record, error)
	// List returns every record, in the order of the storage IDs. It is called for
	// every question about an image, so it must be cheap; imageref.Resolve finds in
	// it what a name stands for. The caller must not change what it gets.
	List(ctx context.Context) ([]imageref.Record, error)
}

// Holder gives what the store holds already, so that a warm pull fetches no blob
// again. A store that is no Holder costs requests, nothing else.
type Holder interface {
	// Blob returns the index, manifest or config with the digest d out of a record
	// that was pulled from the same repository (host/path); else it is
	// errdefs.NotFound. The repository is what a registry authorises: without it,
	// whoever knows the digest of a private image could name it in a manifest of
	// his own and be given its config.
	Blob(ctx context.Context, repository string, d digest.Digest) ([]byte, error)
}

// Named returns the record that ref names in the store: the one last pulled by it.
// None is errdefs.NotFound.
func Named(ctx context.Context, store Reader, ref imageref.Reference) (imageref.Record, error) {
	records, err := store.List(ctx)
	if err != nil {
		return imageref.Record{}, err
	}
	found := imageref.Resolve(records, imageref.NewQuery(ref.String(), []imageref.Reference{ref})).Records
	if len(found) == 0 {
		return imageref.Record{}, errdefs.New(errdefs.NotFound, "no layer-less image by the name "+ref.String(), nil)
	}
	return found[0], nil
}

// Remover removes records. A record that a container was made from is
// errdefs.InUse; what is not there is errdefs.NotFound.
type Remover interface {
	// Remove removes the record with all its references.
	Remove(ctx context.Context, id imageref.StorageID) error
	// RemoveReference removes one name: a tag, or everything that a digest
	// reference pins. The record goes with its last reference.
	RemoveReference(ctx context.Context, ref imageref.Reference) error
}

// Store keeps layer-less records. It never holds a layer.
type Store interface {
	Writer
	Reader
	Remover
}
