// Package metrics counts what an operator asks of Husk and serves it to
// Prometheus. Everything hangs on the value: no default registry, no globals.
package metrics

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

const (
	// Other stands for a handler or a method that is not known: what a client
	// makes up must not become a time series, or any client could fill the memory
	// of Husk and of Prometheus.
	Other = "other"
	// OK is the outcome of what did not fail.
	OK = "ok"
)

// Lister lists the layer-less records of the node.
type Lister interface {
	// List returns every record.
	List(ctx context.Context) ([]imageref.Record, error)
}

// Sandboxes lists the pods whose shims pull layers.
type Sandboxes interface {
	// List returns every pod, those that did not answer with their Err.
	List(ctx context.Context) ([]sandboxes.Sandbox, error)
}

// Options say what is counted.
type Options struct {
	// Version of Husk, for husk_build_info.
	Version string
	// Methods are the full gRPC names ("/runtime.v1.ImageService/PullImage") that
	// get a series of their own when they are forwarded. Zero: all count as [Other].
	Methods []string
	// Handlers are the runtime handlers of the configuration; see [Metrics.SetHandlers].
	Handlers []string
	// Records are counted at each scrape. Zero: no record metrics.
	Records Lister
	// Sandboxes are asked at each scrape. Zero: no sandbox metrics.
	Sandboxes Sandboxes
	// Log is told why a scrape or the server fails. Zero: nobody is.
	Log *slog.Logger
}

// Metrics holds every metric of one Husk. Its methods may be called at once.
type Metrics struct {
	registry *prometheus.Registry
	methods  map[string]string // full name -> label
	records  Lister
	pods     Sandboxes
	log      *slog.Logger
	asking   chan struct{} // one slot: see totals
	looking  chan struct{} // one slot: see tally

	mu       sync.RWMutex
	handlers map[string]bool

	pulls         *prometheus.CounterVec
	pullSeconds   *prometheus.HistogramVec
	pullsNow      prometheus.Gauge
	requests      prometheus.Counter
	registryBytes prometheus.Counter
	notRead       prometheus.Counter
	layerPulls    *prometheus.CounterVec
	layerSeconds  *prometheus.HistogramVec
	layersNow     prometheus.Gauge
	layerBytes    prometheus.Counter
	forwarded     *prometheus.CounterVec
	reloads       *prometheus.CounterVec
	scrapeErrors  prometheus.Counter
}

// New returns metrics that stand at zero.
func New(o Options) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		methods:  make(map[string]string, len(o.Methods)),
		records:  o.Records,
		log:      o.Log,
		pods:     o.Sandboxes,
		asking:   make(chan struct{}, 1),
		looking:  make(chan struct{}, 1),

		pulls: counters("husk_pulls_total",
			"Metadata pulls that ended, by outcome: ok or the kind of error.", "handler", "outcome"),
		// From a warm digest on the local network to the default pull_timeout.
		pullSeconds: seconds("husk_pull_seconds", "How long metadata pulls took, failed ones included.",
			.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120),
		pullsNow: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "husk_pulls_in_progress", Help: "Metadata pulls under way.",
		}),
		requests:      counter("husk_pull_registry_requests_total", "HTTP requests that pulls made to registries, failed ones included."),
		registryBytes: counter("husk_pull_registry_bytes_total", "Bytes that pulls read from registries, failed ones included."),
		notRead:       counter("husk_layer_bytes_not_read_total", "Compressed layer bytes of pulled images, which the host did not read."),
		layerPulls: counters("husk_layer_pulls_total",
			"Pulls of layers in pods that ended, by outcome: ok or the kind of error.", "handler", "outcome"),
		// From an image that the pod has to the default layer_pull_timeout.
		layerSeconds: seconds("husk_layer_pull_seconds", "How long pulls of layers in pods took, failed ones included.",
			.1, .5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800),
		layersNow: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "husk_layer_pulls_in_progress", Help: "Pulls of layers in pods under way, as husk has asked for them.",
		}),
		layerBytes: counter("husk_layer_pulled_bytes_total", "Compressed layer bytes that pods fetched when asked to, failed pulls included."),
		forwarded: counters("husk_forwarded_calls_total",
			"gRPC calls of clients that were passed on to CRI-O, by the code of the answer.", "method", "code"),
		reloads:      counters("husk_config_reloads_total", "Times the configuration was read again.", "outcome"),
		scrapeErrors: counter("husk_scrape_errors_total", "Scrapes in which the records or the sandboxes could not be counted."),
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	for _, full := range o.Methods {
		m.methods[full] = strings.TrimPrefix(full, "/")
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "husk_build_info", Help: "Always 1; the version of Husk is in the label.",
	}, []string{"version"})
	build.WithLabelValues(o.Version).Set(1)
	m.registry.MustRegister(m.pulls, m.pullSeconds, m.pullsNow, m.requests, m.registryBytes, m.notRead,
		m.layerPulls, m.layerSeconds, m.layersNow, m.layerBytes,
		m.forwarded, m.reloads, m.scrapeErrors, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.SetHandlers(o.Handlers)
	for _, outcome := range outcomes() {
		m.reloads.WithLabelValues(outcome) // so that the first failure is an increase
	}
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// seconds counts how long something took, by runtime handler.
func seconds(name, help string, buckets ...float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"handler"})
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// outcomes of a reload.
func outcomes() []string { return []string{OK, "error"} }

// SetHandlers says which handlers the configuration has now. Pulls of any other
// count as [Other]. The counts of a handler that is gone stay, as counters must.
func (m *Metrics) SetHandlers(names []string) {
	known := make(map[string]bool, len(names))
	for _, name := range names {
		known[name] = true
		m.pulls.WithLabelValues(name, OK)
		m.pullSeconds.WithLabelValues(name)
		m.layerPulls.WithLabelValues(name, OK)
		m.layerSeconds.WithLabelValues(name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handlers = known
}

// handler is the label of a handler.
func (m *Metrics) handler(name string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.handlers[name] {
		return name
	}
	return Other
}

// outcomeLabel is the label of a pull's outcome; what is no kind is an internal error.
func outcomeLabel(name string) string {
	if name == OK {
		return OK
	}
	return errdefs.ParseKind(name).String()
}

// Pulled counts a pull that ended. outcome is [OK] or the name of an
// [errdefs.Kind]; result is what is known of the pull, zero when it is nothing.
func (m *Metrics) Pulled(handler, outcome string, took time.Duration, result manifestonly.Result) {
	name, how := m.handler(handler), outcomeLabel(outcome)
	m.pulls.WithLabelValues(name, how).Inc()
	m.pullSeconds.WithLabelValues(name).Observe(took.Seconds())
	m.requests.Add(float64(max(0, result.Stats.Requests)))
	m.registryBytes.Add(float64(max(0, result.Stats.Bytes)))
	if how == OK {
		m.notRead.Add(float64(max(0, result.Record.LayerBytes)))
	}
}

// PullStarted counts a pull as under way until done is called.
func (m *Metrics) PullStarted() (done func()) {
	m.pullsNow.Inc()
	return m.pullsNow.Dec
}

// LayersPulled counts a pull of layers in a pod that ended, which fetched so many
// compressed bytes.
func (m *Metrics) LayersPulled(handler, outcome string, took time.Duration, bytes int64) {
	name := m.handler(handler)
	m.layerPulls.WithLabelValues(name, outcomeLabel(outcome)).Inc()
	m.layerSeconds.WithLabelValues(name).Observe(took.Seconds())
	m.layerBytes.Add(float64(max(0, bytes)))
}

// LayersStarted counts a pull of layers as under way until done is called.
func (m *Metrics) LayersStarted() (done func()) {
	m.layersNow.Inc()
	return m.layersNow.Dec
}

// Forwarded counts a call that was passed on to CRI-O, and how it was answered.
func (m *Metrics) Forwarded(method string, code codes.Code) {
	label, ok := m.methods[method]
	if !ok {
		label = Other
	}
	if code > codes.Unauthenticated { // the last one; a backend may send any number
		code = codes.Unknown
	}
	m.forwarded.WithLabelValues(label, code.String()).Inc()
}

// Reloaded counts one reading of the configuration; err is why it failed.
func (m *Metrics) Reloaded(err error) {
	how := OK
	if err != nil {
		how = "error"
	}
	m.reloads.WithLabelValues(how).Inc()
}
