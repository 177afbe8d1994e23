package daemon

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/handover"
	"github.com/husk-cri/husk/internal/janitor"
	"github.com/husk-cri/husk/internal/logging"
	"github.com/husk-cri/husk/internal/metrics"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/internal/tracing"
	"github.com/husk-cri/husk/manifestonly/cstore"
)

// Options say what to serve.
type Options struct {
	// Path is husk.toml.
	Path string
	// Version of Husk, for registries, logs and metrics.
	Version string
	// Log is where log lines go.
	Log io.Writer
}

// Serve stands in front of CRI-O until ctx is done, or another husk has taken the
// socket over. SIGHUP reads the configurations again.
func Serve(ctx context.Context, options Options) (err error) {
	// From here on SIGHUP means reload; before, it would end husk.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	d, err := newDaemon(ctx, options)
	if err != nil {
		return err
	}
	if d.tracer, err = startTracing(ctx, d); err != nil {
		return err
	}
	defer func() {
		if flushErr := d.tracer.Shutdown(ctx); flushErr != nil { // a lost span is no failure of husk's
			d.log.Warn("send the last traces", "error", flushErr)
		}
	}()
	s := d.now.Load()
	server, err := front.New(s.frontConfig(), front.Collaborators{ //nolint:contextcheck // every call brings its own
		Puller: d, Placed: d, Held: d, Records: d.store, Names: d, Log: d.log, Observer: d.metrics, Tracer: d.tracer,
		Layers: tracedLayers{sandboxes.Client{}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	listener, err := handover.Listen(ctx, handover.Options{Path: s.Config.Listen, HandoverPath: s.Config.HandoverSocket})
	if err != nil {
		return err
	}
	serving, withdraw := listener.Offer(ctx, d.log)
	defer withdraw()
	d.log.Info("serving CRI", "version", options.Version, "listen", s.Config.Listen, "socket", listener.Origin, "backend", s.backend(),
		"guest_pull_handlers", strings.Join(s.Crio.GuestPullHandlers(), ","))
	d.warn(serving)

	var beside sync.WaitGroup
	defer beside.Wait()
	serving, stop := context.WithCancel(serving) // the work beside ends when serving does
	defer stop()
	beside.Go(func() { d.reloads(serving, server, hup) })
	beside.Go(func() { d.serveMetrics(serving) })
	d.notify(serving, handover.Ready, "serving "+s.Config.Listen)
	if err = server.Serve(serving, listener); err == nil {
		d.log.Info("stopped serving", "because", context.Cause(serving))
	}
	return err
}

// newDaemon reads the settings, opens the store, and repairs what a crash has left.
func newDaemon(ctx context.Context, options Options) (*daemon, error) {
	s, err := checkedSettings(options.Path, options.Version)
	if err != nil {
		return nil, err
	}
	// Now, and not at the first pull: what changes later waits for SIGHUP.
	s.problems = append(s.problems, registriesProblems(s.Source, s.Config.RegistriesConf)...)
	d := &daemon{options: options}
	if err := d.use(s); err != nil {
		return nil, err
	}
	if d.log, err = logging.New(options.Log, &d.level, s.Config.LogFormat); err != nil {
		return nil, err
	}
	logging.RouteLogrus(logrus.StandardLogger(), d.log)
	if d.store, err = cstore.Open(s.StoreOptions()); err != nil {
		return nil, err
	}
	report, err := d.store.Check(ctx, cstore.CheckOptions{Repair: true})
	if err != nil { // pods that need no record must not do without CRI-O for that
		d.log.Error("check the image records", "error", err)
	}
	for _, f := range report.Findings {
		d.log.Warn("checked the image records", "finding", string(f.Kind), "record", f.Record, "done", string(f.Done), "detail", f.Detail)
	}
	d.metrics = metrics.New(metrics.Options{
		Version: options.Version, Methods: front.Methods(), Handlers: s.Crio.GuestPullHandlers(), Records: d.store, Log: d.log,
		Sandboxes: sandboxes.Client{},
	})
	return d, nil
}

// startTracing traces if CRI-O does, to the same collector: the spans are joined there.
func startTracing(ctx context.Context, d *daemon) (*tracing.Tracer, error) {
	t := d.now.Load().Crio.Tracing
	if !t.Enabled {
		return nil, nil
	}
	return tracing.Start(ctx, tracing.Options{
		Endpoint: t.Endpoint, SamplingPerMillion: t.SamplingPerMillion, Version: d.options.Version, Log: d.log,
	})
}

// reloads reads the configuration again for each SIGHUP. Unused records are removed
// meanwhile, after the time that was last read.
func (d *daemon) reloads(ctx context.Context, server *front.Server, hup <-chan os.Signal) {
	stop := d.sweep(ctx)
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			d.notify(ctx, handover.Stopping, "")
			return
		case <-hup:
		}
		d.notify(ctx, handover.Reloading, "")
		if err := d.reload(ctx, server); err != nil {
			d.log.ErrorContext(ctx, "reload the configuration; the one before stays in force", "error", err)
		} else {
			d.log.InfoContext(ctx, "reloaded the configuration")
			stop()
			stop = d.sweep(ctx)
		}
		d.notify(ctx, handover.Ready, "")
	}
}

// serveMetrics serves metrics until ctx is done, if the configuration wants them.
// Pods matter more than metrics: a failure ends the metrics alone.
func (d *daemon) serveMetrics(ctx context.Context) {
	addr := d.now.Load().Config.MetricsListen
	if addr == "" {
		return
	}
	if err := d.metrics.Serve(ctx, addr); err != nil && ctx.Err() == nil {
		d.log.ErrorContext(ctx, "serve metrics", "listen", addr, "error", err)
	}
}

// sweep removes records that nothing uses, if the configuration says after what time,
// until it is stopped.
func (d *daemon) sweep(ctx context.Context) (stop func()) {
	ttl := d.now.Load().Config.RecordTTL.Duration
	if ttl == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		if err := janitor.Run(ctx, janitor.Options{TTL: ttl, Sweeper: d.store, Log: d.log}); err != nil {
			d.log.ErrorContext(ctx, "remove unused records", "error", err)
		}
	})
	return func() { cancel(); sweeping.Wait() }
}

// notify tells systemd, which may not be there.
func (d *daemon) notify(ctx context.Context, state handover.State, line string) {
	if err := handover.Notify(state, line); err != nil {
		d.log.WarnContext(ctx, "notify systemd", "error", err)
	}
}
