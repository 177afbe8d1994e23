// Package front stands between kubelet and CRI-O on the CRI socket. It makes the
// few calls that deal with layer-less images true, and passes every other call on
// as raw frames. It holds no state: what it knows is in CRI-O's containers, in the
// record store, and in the configuration.
package front

import (
	"context"
	"log/slog"
	"time"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/imageref"
)

const (
	// defaultMaxPulls bounds the metadata pulls under way, so that a node that
	// starts a hundred pods at once does not open a hundred registry connections.
	defaultMaxPulls = 16
	// defaultPullTimeout bounds one metadata pull: kubelet sets no deadline, and a
	// registry that sends a byte a minute would keep its slot for ever.
	defaultPullTimeout = 2 * time.Minute
)

// Handler is what the front must know of a runtime handler.
type Handler struct {
	// Name as in crio.conf.
	Name string
	// GuestPull says that the runtime pulls the layers, so the host must not.
	GuestPull bool
	// ResolvesNames says that the runtime resolves user and group names against the
	// image's own files, as Husk's shim does.
	ResolvesNames bool
	// KeepTag tells the guest the tag instead of the digest. Zero: the digest.
	KeepTag bool
}

// Handlers are the runtime handlers CRI-O is configured with. The answers may
// change between calls, when the configuration is read again.
type Handlers interface {
	// Handler returns the handler with the given name; false when there is none.
	Handler(name string) (Handler, bool)
	// Default is the name of CRI-O's default runtime.
	Default() string
	// GuestPull lists the names of the guest-pull handlers, sorted.
	GuestPull() []string
}

// Puller fetches what describes an image and commits it as a record.
type Puller interface {
	// Pull contacts the registry with the credentials of the request, whatever
	// the store holds.
	Pull(ctx context.Context, req manifestonly.Request) (manifestonly.Result, error)
}

// Held makes records of images that CRI-O holds in full.
type Held interface {
	// PullHeld makes a record of the image with this ID, as pulled by ref, without
	// asking a registry; errdefs.NotFound when CRI-O does not hold it under a name
	// in ref's repository.
	PullHeld(ctx context.Context, id imageref.ImageID, ref imageref.Reference) (manifestonly.Result, error)
}

// Records are the layer-less images of the node; [manifestonly.Store] has them.
type Records interface {
	// Get returns one record; errdefs.NotFound when there is none.
	Get(ctx context.Context, id imageref.StorageID) (imageref.Record, error)
	// List returns every record.
	List(ctx context.Context) ([]imageref.Record, error)
	// Remove removes a record; errdefs.InUse while a container needs it.
	Remove(ctx context.Context, id imageref.StorageID) error
	// RemoveReference removes one name, and the record with its last name.
	RemoveReference(ctx context.Context, ref imageref.Reference) error
}

// Names resolves image names as the node's registries.conf says.
type Names interface {
	// Resolve returns the references that name may stand for, best first.
	Resolve(ctx context.Context, name string) ([]imageref.Reference, error)
}

// Collaborators are the parts of Husk that the front needs. All are required.
type Collaborators struct {
	Handlers Handlers
	Puller   Puller
	Held     Held
	Records  Records
	Names    Names
	Log      *slog.Logger
}

// Config is the front's configuration.
type Config struct {
	// Backend is the absolute path of CRI-O's socket.
	Backend string
	// DefaultHandler is whose a pull is that names no pod and no handler. Zero:
	// CRI-O's default runtime.
	DefaultHandler string
	// AssumeHandler answers presence checks that bring no handler with this
	// handler's view. Zero: CRI-O's view.
	AssumeHandler string
	// MaxPulls bounds the metadata pulls under way; more wait. Zero: 16.
	MaxPulls int
	// PullTimeout bounds one metadata pull. Zero: 2 minutes.
	PullTimeout time.Duration
	// MaxMessageBytes bounds each CRI message. Zero: CRI-O's default, 80 MiB.
	MaxMessageBytes int
}
