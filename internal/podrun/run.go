package podrun

import (
	"context"
	"errors"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podrun/logs"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/internal/taskclient"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// Prepare refuses what could never run, and fills in what the options leave open but the
// image: it is called before anything is pulled.
func (e *Engine) Prepare(ctx context.Context, o *Options) error {
	if err := o.check(); err != nil {
		return err
	}
	podID := ""
	if o.Pod != "" {
		var err error
		if podID, err = e.findPod(ctx, o.Pod); err != nil {
			return err
		}
	}
	if o.Name != "" {
		if c, err := e.Store.Get(ctx, o.Name); err == nil && c.Name == o.Name {
			return errdefs.Newf(errdefs.InUse, "run container "+o.Name, "the name is taken (husk ps -a)")
		}
	}
	if podID != "" {
		return nil // its network is there, or was
	}
	var err error
	o.Network, err = e.network(ctx, o.Network)
	return err
}

// network returns the name of a network that is there; "" is the default one.
func (e *Engine) network(ctx context.Context, name string) (string, error) {
	if name == NetworkHost || name == NetworkNone {
		return name, nil
	}
	networks, err := e.Network.Networks(ctx)
	switch {
	case err != nil:
		return "", err
	case name == "" && len(networks) > 0:
		return networks[0], nil
	case slices.Contains(networks, name):
		return name, nil
	case len(networks) == 0:
		return "", errdefs.Newf(errdefs.NotFound, "run in network "+name, "the node has no CNI network: use --net host, or write one into %s", e.Network.ConfDir)
	default:
		return "", errdefs.Newf(errdefs.NotFound, "run in network "+name, "there is none of this name; there are: %s", strings.Join(networks, ", "))
	}
}

// Run runs a container to its end and returns its exit code. Options are as Prepare left
// them, and have an image. Until the container runs, the end of ctx undoes everything;
// from then on only signals end it.
func (e *Engine) Run(ctx context.Context, o Options) (code int, err error) {
	id := bundles.NewID()
	if o.Name == "" {
		o.Name = autoName(o.Pulled.Reference, id)
	}
	life, err := takeLock(ctx, e.lockOf(id)) // before the record: nobody takes it for a dead one's
	if err != nil {
		return 0, err
	}
	defer life.release()
	m, err := e.join(ctx, o, id)
	if err != nil {
		return 0, err
	}
	ran := false
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		err = errors.Join(err, e.leave(clean, m.pod.ID, id, o.AutoRemove || !ran))
	}()
	if err := e.pullLayers(ctx, o, m.pod); err != nil {
		return 0, err
	}
	dir, err := e.Store.Dir(id)
	if err != nil {
		return 0, err
	}
	log, err := logs.Create(dir)
	if err != nil {
		return 0, err
	}
	p := process{id: id, io: o.IO, log: log, terminal: o.Terminal}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.open(e.streams(m.Container)); err != nil {
		return 0, err
	}
	shim, err := e.create(ctx, m, &p)
	if err != nil {
		return 0, err
	}
	defer func() { _ = shim.Close() }() // a connection
	if _, err := shim.Start(ctx, id, ""); err != nil {
		return 0, err
	}
	ran = true
	ctx = context.WithoutCancel(ctx)
	if _, err := e.Store.Update(ctx, id, started); err != nil {
		return 0, err
	}
	if o.Started != nil {
		o.Started(id)
	}
	exit, err := p.follow(ctx, shim)
	reason := ""
	if err != nil {
		exit.Code, reason = killedCode, "the runtime ended: "+err.Error()
	}
	_, updateErr := e.Store.Update(ctx, id, exited(exit.Code, reason))
	return exit.Code, errors.Join(err, updateErr)
}

// create creates the container in the pod's shim.
func (e *Engine) create(ctx context.Context, m member, p *process) (_ *taskclient.Shim, err error) {
	change, err := e.membership(ctx, m.pod)
	if err != nil {
		return nil, err
	}
	var notes map[string]string
	bundle, err := e.Store.Finish(ctx, m.ID, func(spec *rspec.Spec) error {
		notes = spec.Annotations
		return change(spec)
	})
	if err != nil {
		return nil, err
	}
	shim, err := taskclient.Runtime{Path: m.Runtime.Path}.Start(ctx, m.ID, bundle, nil)
	if err != nil {
		return nil, err
	}
	_, err = shim.Create(ctx, taskclient.CreateRequest{
		ID: m.ID, Bundle: bundle, IO: p.streams.IO(), Terminal: m.Terminal, ConfigPath: m.Runtime.ConfigPath, GuestPull: guestPull(notes),
	})
	if err != nil {
		return nil, errors.Join(err, shim.Close())
	}
	return shim, nil
}

// membership puts a container into its pod's namespaces. Of a runtime with a kernel of its
// own they are not this machine's.
func (e *Engine) membership(ctx context.Context, pod podInfo) (func(*rspec.Spec) error, error) {
	if !isHusk(pod.Runtime) {
		return func(*rspec.Spec) error { return nil }, nil
	}
	bundle, err := e.Store.RunDir(pod.ID)
	if err != nil {
		return nil, err
	}
	address, err := taskclient.Address(bundle)
	if err != nil {
		return nil, err
	}
	shim, err := taskclient.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = shim.Close() }() // a connection
	state, err := shim.State(ctx, pod.ID)
	if err != nil {
		return nil, err
	}
	if state.Status != taskclient.StatusRunning {
		return nil, errdefs.Newf(errdefs.Unavailable, "join pod "+pod.Pod.Name, "its sandbox is %s", state.Status)
	}
	return joinSandbox(state.Pid), nil
}

// pullLayers has the pod pull the layers, and compares what it pulled with what was asked
// for. A runtime that cannot be asked pulls when the container is created.
func (e *Engine) pullLayers(ctx context.Context, o Options, pod podInfo) error {
	if !isHusk(pod.Runtime) {
		return nil
	}
	pinned := o.Pulled.Pinned()
	got, err := e.layers().Pull(ctx, sandboxes.PullRequest{Sandbox: pod.ID, Reference: pinned, Credentials: o.Credentials})
	if errors.Is(err, sandboxes.ErrOldShim) {
		return nil
	}
	if err != nil {
		return err
	}
	op := "pull the layers of " + pinned.String()
	switch {
	case got.Manifest != o.Image.Manifest:
		return errdefs.Newf(errdefs.DigestMismatch, op, "the pod has the manifest %s, and the host %s", got.Manifest, o.Image.Manifest)
	case got.ID != o.Image.ImageID():
		return errdefs.Newf(errdefs.DigestMismatch, op, "the pod has the image ID %s, and the host %s", got.ID, o.Image.ImageID())
	}
	return nil
}
