// Package front stands between kubelet and CRI-O on the CRI socket. It makes the
// few calls that deal with layer-less images true, and passes every other call on
// as raw frames. It holds no state: what it knows is in CRI-O's containers, in the
// record store, and in the configuration.
package front

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/husk-cri/husk/internal/sandboxes"
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
	// defaultLayerPullTimeout bounds one pull of layers in a pod, for the same reason.
	defaultLayerPullTimeout = 30 * time.Minute
)

// Handler is what the front must know of a runtime handler.
type Handler struct {
	// Name as in crio.conf.
	Name string
	// GuestPull says that the runtime pulls the layers, so the host must not.
	GuestPull bool
	// ResolvesNames says that the runtime resolves user and group names against the
	// image's own files, as Husk's shim does. Zero: containers that need it are refused.
	ResolvesNames bool
	// RefusesNamedPulls refuses the pulls of its pods as well, when the image gives its
	// user by name and the pod sets none. Zero: such pulls go on.
	RefusesNamedPulls bool
	// PullsLayers says that the shims of its pods pull layers when they are asked to, as
	// Husk's do: inside PullImage then, and not when a container is created.
	PullsLayers bool
	// LazyPull does not ask them: layers are pulled when a container is created, and a
	// record is all there is to an image before. Zero: they are asked where PullsLayers.
	LazyPull bool
	// PresentOnNode shows presence checks of its pods every record of the node. Zero: where
	// PullsLayers, what the pod that asks holds.
	PresentOnNode bool
	// KeepTag tells the guest the tag instead of the digest. Zero: the digest.
	KeepTag bool
	// PullInSandbox makes even the metadata come from the pod's network, with its
	// resolv.conf and in its cgroup. Zero: from the host's network.
	PullInSandbox bool
	// MaxImageBytes bounds the compressed layers of an image, in bytes. Zero: no bound.
	MaxImageBytes int64
	// MaxLayers bounds their number. Zero: that of package manifestonly.
	MaxLayers int
}

// eager reports whether layers are pulled inside PullImage, where s.Layers can.
func (h Handler) eager() bool { return h.PullsLayers && !h.LazyPull }

// Handlers are the runtime handlers CRI-O is configured with. They never change: when
// the configuration is read again there are others ([Server.Reconfigure]).
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
	// Fetch is Pull without the commit.
	Fetch(ctx context.Context, req manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error)
	// Commit makes a record of what was fetched.
	Commit(ctx context.Context, img manifestonly.Image) (imageref.Record, error)
}

// LayerPuller has pods pull layers, and asks what they hold; [sandboxes.Client] does.
type LayerPuller interface {
	// Pull returns when the pod's store holds the image, or cannot; [sandboxes.ErrOldShim]
	// for a pod that will pull when a container is created.
	Pull(ctx context.Context, req sandboxes.PullRequest) (sandboxes.Image, error)
	// Images returns what the pod's store holds; [sandboxes.ErrOldShim] as Pull.
	Images(ctx context.Context, sandboxID string) ([]sandboxes.Image, error)
}

// Place is where a pull runs that must not run where Husk does.
type Place struct {
	// Sandbox is what CRI-O says of the pod's sandbox: the "info" of its verbose
	// status, JSON with the runtime spec. The pull is to use the network namespace, the
	// resolv.conf and the cgroup in it. Empty: the host's network.
	Sandbox []byte
	// CgroupParent is that of the request's sandbox_config, as the client sent it; ""
	// when it has none. separate_pull_cgroup of crio.conf may ask for it.
	CgroupParent string
}

// PlacedPuller is a [Puller] for other places than where Husk is.
type PlacedPuller interface {
	// PullAt pulls at the place. What it cannot reach from there is an error; it never
	// asks from the host's network what was to be asked from a pod's.
	PullAt(ctx context.Context, place Place, req manifestonly.Request) (manifestonly.Result, error)
	// FetchAt is PullAt without the commit.
	FetchAt(ctx context.Context, place Place, req manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error)
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

// Observer is told what the front does. Its methods are called while clients wait, by
// many goroutines at once.
type Observer interface {
	// PullStarted is called when a metadata pull begins, its wait for a free slot
	// included, and done when it has ended.
	PullStarted() (done func())
	// Pulled is called for each metadata pull that ended. outcome is "ok" or the name
	// of an error's kind; of a failure, result has only what it cost.
	Pulled(handler, outcome string, took time.Duration, result manifestonly.Result)
	// LayersStarted is called when a pod is asked to pull layers, and done when that has
	// ended.
	LayersStarted() (done func())
	// LayersPulled is called for each pull of layers that ended: how, and how many
	// compressed bytes the pod fetched for it.
	LayersPulled(handler, outcome string, took time.Duration, bytes int64)
	// Forwarded is called for each call of a client that was passed on to CRI-O, edited
	// or as it came, with the full name of its method and the code it ended with.
	Forwarded(method string, code codes.Code)
}

// Tracer makes spans of the calls the front has an opinion on.
type Tracer interface {
	// Trace begins the span of one call. The call is then answered on the stream it
	// returns, whose context and incoming metadata go into the calls to CRI-O. end is
	// called once, with the call's error.
	Trace(stream grpc.ServerStream, method string) (traced grpc.ServerStream, end func(error))
}

// Collaborators are the parts of Husk that the front needs.
type Collaborators struct {
	// These are required.
	Puller  Puller
	Held    Held
	Records Records
	Names   Names
	Log     *slog.Logger
	// Placed pulls for handlers with PullInSandbox, and everything with
	// Config.SeparatePull. Zero: such pulls are refused.
	Placed PlacedPuller
	// Layers pulls for handlers with PullsLayers. Zero: pods pull when a container is
	// created.
	Layers LayerPuller
	// Observer counts. Zero: nobody does.
	Observer Observer
	// Tracer traces. Zero: nobody does.
	Tracer Tracer
}

// Config is the front's configuration. [Server.Reconfigure] says what of it may
// change while the front serves.
type Config struct {
	// Backend is the absolute path of CRI-O's socket.
	Backend string
	// Handlers are required.
	Handlers Handlers
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
	// LayerPullTimeout bounds one pull of layers in a pod. Zero: 30 minutes.
	LayerPullTimeout time.Duration
	// SeparatePull runs metadata pulls through Collaborators.Placed, in the cgroup that
	// separate_pull_cgroup of crio.conf names. Zero: they run in Husk itself.
	SeparatePull bool
	// MaxSendBytes and MaxRecvBytes bound the messages that CRI-O sends and is sent, as
	// grpc_max_send_msg_size and grpc_max_recv_msg_size of crio.conf do. Zero: CRI-O's
	// default, 80 MiB.
	MaxSendBytes, MaxRecvBytes int
}

// live is the configuration in force. It is replaced whole, so that no decision takes
// one half of it from before a reload and the other from after it: a pull could be
// forwarded that neither allows.
type live struct {
	Config
	pulls chan struct{} // one slot per pull under way
}

func newLive(config Config, old *live) *live {
	if config.MaxPulls <= 0 {
		config.MaxPulls = defaultMaxPulls
	}
	if config.PullTimeout <= 0 {
		config.PullTimeout = defaultPullTimeout
	}
	if config.LayerPullTimeout <= 0 {
		config.LayerPullTimeout = defaultLayerPullTimeout
	}
	if old != nil && cap(old.pulls) == config.MaxPulls {
		return &live{config, old.pulls}
	}
	return &live{config, make(chan struct{}, config.MaxPulls)}
}

// unobserved is the Observer of a front that has none.
type unobserved struct{}

func (unobserved) PullStarted() func()                                       { return func() {} }
func (unobserved) Pulled(string, string, time.Duration, manifestonly.Result) {}
func (unobserved) LayersStarted() func()                                     { return func() {} }
func (unobserved) LayersPulled(string, string, time.Duration, int64)         {}
func (unobserved) Forwarded(string, codes.Code)                              {}
