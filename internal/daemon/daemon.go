package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/logging"
	"github.com/husk-cri/husk/internal/metrics"
	"github.com/husk-cri/husk/internal/podpull"
	"github.com/husk-cri/husk/internal/tracing"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// daemon is what the front works with while husk serves: the store, and the settings
// as they were last read.
type daemon struct {
	options Options
	store   *cstore.Store
	now     atomic.Pointer[Settings]
	started *Settings // the first ones: what cannot be changed any more is theirs
	flights manifestonly.Flights
	level   slog.LevelVar
	log     *slog.Logger
	metrics *metrics.Metrics
	tracer  *tracing.Tracer // nil when CRI-O does not trace
}

var (
	_ front.Handlers     = (*Settings)(nil)
	_ front.Puller       = (*daemon)(nil)
	_ front.PlacedPuller = (*daemon)(nil)
	_ front.Held         = (*daemon)(nil)
	_ front.Names        = (*daemon)(nil)
	_ front.Tracer       = (*tracing.Tracer)(nil)
)

// Handler implements front.Handlers.
func (s *Settings) Handler(name string) (front.Handler, bool) {
	conf, ok := s.Crio.Handlers[name]
	own, named := s.Config.Handlers[name], s.Config.NamedUsers(name, conf)
	return front.Handler{
		Name: name, GuestPull: conf.GuestPull(), KeepTag: !s.Config.PinDigest(name),
		ResolvesNames: named == config.NamedUsersSandbox, RefusesNamedPulls: named == config.NamedUsersRefuse,
		PullsLayers: conf.PullsLayers(), LazyPull: !s.Config.EagerPull(name), PresentOnNode: own.Presence == config.PresenceNode,
		PullInSandbox: own.PullInSandbox, MaxImageBytes: int64(own.MaxImageSize), MaxLayers: own.MaxLayers,
	}, ok
}

// Default implements front.Handlers.
func (s *Settings) Default() string { return s.Crio.DefaultRuntime }

// GuestPull implements front.Handlers.
func (s *Settings) GuestPull() []string { return s.Crio.GuestPullHandlers() }

// Resolve implements front.Names.
func (d *daemon) Resolve(ctx context.Context, name string) ([]imageref.Reference, error) {
	return d.now.Load().Source.Resolve(ctx, name)
}

// Pull implements front.Puller. Pulls that are the same in everything share one.
func (d *daemon) Pull(ctx context.Context, req manifestonly.Request) (manifestonly.Result, error) {
	s := d.now.Load()
	return d.pull(ctx, s, podpull.Place{}, req, func(ctx context.Context) (manifestonly.Result, error) {
		return manifestonly.Pull(ctx, req, s.Source, d.store)
	})
}

// PullAt implements front.PlacedPuller: in the pod's network and cgroup, or in the
// cgroup that separate_pull_cgroup names.
func (d *daemon) PullAt(ctx context.Context, at front.Place, req manifestonly.Request) (manifestonly.Result, error) {
	s := d.now.Load()
	place, err := placeOf(at, s.Crio.Image.SeparatePullCgroup)
	if err != nil {
		return manifestonly.Result{}, err
	}
	return d.pull(ctx, s, place, req, func(ctx context.Context) (manifestonly.Result, error) {
		return s.placed(d.store).Pull(ctx, place, req)
	})
}

// Fetch implements front.Puller.
func (d *daemon) Fetch(ctx context.Context, req manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error) {
	s, kept := d.now.Load(), &uncommitted{Store: d.store}
	result, err := d.alone(ctx, req, func(ctx context.Context) (manifestonly.Result, error) {
		return manifestonly.Pull(ctx, req, s.Source, kept)
	})
	return kept.image(err), result.Stats, err
}

// FetchAt implements front.PlacedPuller.
func (d *daemon) FetchAt(ctx context.Context, at front.Place, req manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error) {
	s, kept := d.now.Load(), &uncommitted{Store: d.store}
	place, err := placeOf(at, s.Crio.Image.SeparatePullCgroup)
	if err != nil {
		return manifestonly.Image{}, manifestonly.Stats{}, err
	}
	result, err := d.alone(ctx, req, func(ctx context.Context) (manifestonly.Result, error) {
		return s.placed(kept).Pull(ctx, place, req)
	})
	return kept.image(err), result.Stats, err
}

// Commit implements front.Puller. A client that leaves does not wait for a store that CRI-O
// has locked.
func (d *daemon) Commit(ctx context.Context, img manifestonly.Image) (imageref.Record, error) {
	result, err := new(manifestonly.Flights).Do(ctx, manifestonly.FlightKey{}, func(ctx context.Context) (manifestonly.Result, error) {
		record, err := manifestonly.Commit(ctx, img, d.store)
		return manifestonly.Result{Record: record}, err
	})
	return result.Record, named("commit "+img.Pulled.Reference.String(), err)
}

// uncommitted is the store for a pull that is not to make a record yet: what the store
// has spares requests, and what is put is kept.
type uncommitted struct {
	*cstore.Store
	img manifestonly.Image
}

// Put implements manifestonly.Writer.
func (u *uncommitted) Put(_ context.Context, img manifestonly.Image) (imageref.Record, error) {
	u.img = img
	return img.Record(), nil
}

// image is what was put; nothing of a pull that failed, which may still be at work.
func (u *uncommitted) image(err error) manifestonly.Image {
	if err != nil {
		return manifestonly.Image{}
	}
	return u.img
}

// alone is pull for one that shares with no other: each of them goes on to have the layers
// pulled for its own pod, beside which one more manifest is nothing.
func (d *daemon) alone(ctx context.Context, req manifestonly.Request, pull func(context.Context) (manifestonly.Result, error)) (manifestonly.Result, error) {
	return d.fly(ctx, new(manifestonly.Flights), manifestonly.FlightKey{}, req, pull)
}

// placeOf finds where a pull runs. A pod's own cgroup wins over separate_pull_cgroup.
func placeOf(at front.Place, separate string) (podpull.Place, error) {
	if len(at.Sandbox) > 0 {
		return podpull.FromRuntimeSpec(at.Sandbox)
	}
	cgroup, err := podpull.SeparateCgroup(separate, at.CgroupParent)
	return podpull.Place{Cgroup: cgroup}, err
}

// pull shares the pulls that are the same in everything, the settings included: what
// was pulled by the policy before a reload is no answer to who asks after it.
func (d *daemon) pull(ctx context.Context, s *Settings, place podpull.Place, req manifestonly.Request,
	pull func(context.Context) (manifestonly.Result, error),
) (manifestonly.Result, error) {
	return d.fly(ctx, &d.flights, d.flights.Key(req, fmt.Sprintf("%p %q", s, place)), req, pull)
}

// fly is one caller's part in a pull, with its span.
func (d *daemon) fly(ctx context.Context, flights *manifestonly.Flights, key manifestonly.FlightKey, req manifestonly.Request,
	pull func(context.Context) (manifestonly.Result, error),
) (result manifestonly.Result, err error) {
	ctx, end := d.tracer.Pull(ctx, tracing.Pull{Image: req.Name, Namespace: req.Namespace})
	defer func() { end(result.Stats.Requests, result.Stats.Bytes, err) }()
	result, err = flights.Do(ctx, key, pull)
	return result, named("pull "+req.Name, err)
}

// named says what was being done of the end of a context, which knows no name.
func named(op string, err error) error {
	if err != nil && !errors.As(err, new(*errdefs.Error)) {
		return errdefs.New(errdefs.KindOf(err), op, err)
	}
	return err
}

// PullHeld implements front.Held.
func (d *daemon) PullHeld(ctx context.Context, id imageref.ImageID, ref imageref.Reference) (manifestonly.Result, error) {
	return manifestonly.Pull(ctx, manifestonly.Request{Name: ref.String()}, d.store.Held(id), d.store)
}

// frontConfig is what the front is told of the settings.
func (s *Settings) frontConfig() front.Config {
	return front.Config{
		Backend:          s.backend(),
		Handlers:         s,
		DefaultHandler:   s.Config.DefaultHandler,
		AssumeHandler:    s.Config.AssumeHandler,
		MaxPulls:         s.Config.MaxPulls,
		PullTimeout:      s.Config.PullTimeout.Duration,
		LayerPullTimeout: s.Config.LayerPullTimeout.Duration,
		SeparatePull:     s.Crio.Image.SeparatePullCgroup != "",
		MaxSendBytes:     s.Crio.GRPC.MaxSendBytes,
		MaxRecvBytes:     s.Crio.GRPC.MaxRecvBytes,
	}
}

// fatal returns the first problem that husk cannot live with.
func (s Settings) fatal() error {
	for _, p := range s.problems {
		if p.Fatal {
			return errdefs.New(errdefs.InvalidArgument, "configuration", p)
		}
	}
	return nil
}

// use makes s the settings of every call that begins from now on.
func (d *daemon) use(s Settings) error {
	if err := s.fatal(); err != nil {
		return err
	}
	if err := logging.SetLevel(&d.level, s.Config.LogLevel); err != nil {
		return err
	}
	if d.started == nil {
		d.started = &s
	}
	d.now.Store(&s)
	return nil
}

// warn tells the log what is wrong with the settings but does not stop husk.
func (d *daemon) warn(ctx context.Context) {
	for _, p := range d.now.Load().problems {
		d.log.WarnContext(ctx, "configuration", "problem", p.Error())
	}
}

// reload reads both configurations and registries.conf again. When any of them is
// wrong, everything stays as it was.
func (d *daemon) reload(ctx context.Context, server *front.Server) (err error) {
	defer func() { d.metrics.Reloaded(err) }()
	old := d.now.Load()
	next, err := checkedSettings(d.options.Path, d.options.Version)
	if err != nil {
		return err
	}
	if err := next.fatal(); err != nil { // before registries.conf takes effect
		return err
	}
	if err := next.Source.Reload(); err != nil {
		return err
	}
	if err := d.use(next); err != nil {
		return err
	}
	server.Reconfigure(next.frontConfig())
	d.metrics.SetHandlers(next.Crio.GuestPullHandlers())
	// A mistake in crio.conf, or a file that was half written, would have the host pull.
	if gone := slices.DeleteFunc(old.GuestPull(), func(name string) bool { return slices.Contains(next.GuestPull(), name) }); len(gone) > 0 {
		d.log.WarnContext(ctx, "crio.conf no longer lets these runtime handlers pull in the guest", "handlers", gone)
	}
	later := append(config.Diff(d.started.Config, next.Config), crioconf.Diff(d.started.Crio, next.Crio)...)
	if len(later) > 0 {
		d.log.WarnContext(ctx, "some changes take effect when husk is restarted", "keys", later)
	}
	d.warn(ctx)
	return nil
}
