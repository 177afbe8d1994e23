package metrics

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// recordsTimeout bounds how long a scrape waits for the record store. CRI-O holds the
// store's lock while it works; a scrape must not hang with it.
const recordsTimeout = 2 * time.Second

// totals is what is counted of the records.
type totals struct {
	records int
	bytes   int64
}

// Gather returns every metric as it stands now. Records that can't be counted
// within two seconds have no sample, and are counted as a scrape error.
func (m *Metrics) Gather(ctx context.Context) ([]*dto.MetricFamily, error) {
	return m.gatherer(ctx).Gather()
}

// gatherer asks for the records and the sandboxes first, so that an error is in this very
// scrape.
func (m *Metrics) gatherer(ctx context.Context) prometheus.Gatherer {
	now := prometheus.NewRegistry()
	if err := errors.Join(m.countRecords(ctx, now), m.countSandboxes(ctx, now)); err != nil {
		m.scrapeErrors.Inc()
		m.log.WarnContext(ctx, "count for a scrape", "error", err)
	}
	return prometheus.Gatherers{m.registry, now}
}

func (m *Metrics) countRecords(ctx context.Context, now prometheus.Registerer) error {
	if m.records == nil {
		return nil
	}
	t, err := m.totals(ctx)
	if err != nil {
		return err
	}
	now.MustRegister(
		gauge("husk_records", "Layer-less image records in the store.", float64(t.records)),
		gauge("husk_records_bytes", "Bytes of manifests, configs and signatures that the records hold on the host.", float64(t.bytes)),
	)
	return nil
}

func gauge(name, help string, value float64) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	g.Set(value)
	return g
}

// totals counts the records. A store that ignores its deadline keeps the only
// slot, so that scrapes of a stuck store pile up no goroutines.
func (m *Metrics) totals(ctx context.Context) (totals, error) {
	ctx, cancel := context.WithTimeout(ctx, recordsTimeout)
	defer cancel()
	select {
	case m.asking <- struct{}{}:
	case <-ctx.Done():
		return totals{}, errdefs.Newf(errdefs.Unavailable, "count records", "the store has not answered an earlier scrape")
	}
	type answer struct {
		totals
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-m.asking }()
		records, err := m.records.List(ctx)
		a := answer{err: err}
		a.records = len(records)
		for _, r := range records {
			a.bytes += r.StoredBytes
		}
		answered <- a
	}()
	select {
	case a := <-answered:
		return a.totals, a.err
	case <-ctx.Done():
		return totals{}, errdefs.New(errdefs.KindOf(ctx.Err()), "count records", ctx.Err())
	}
}

// Handler serves /metrics and /healthz, to GET and HEAD alone.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		promhttp.HandlerFor(m.gatherer(r.Context()), promhttp.HandlerOpts{
			// The reader is on this node: compressing costs memory and saves nothing.
			DisableCompression: true,
			ErrorHandling:      promhttp.ContinueOnError,
		}).ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /healthz", healthz)
	return mux
}

// healthz says that the process answers, and nothing of CRI-O: a husk that is restarted
// because CRI-O is down helps nobody.
func healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	// Who hung up needs no answer.
	_, _ = w.Write([]byte("ok\n"))
}
