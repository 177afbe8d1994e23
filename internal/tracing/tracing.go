// Package tracing makes the OpenTelemetry spans of Husk and joins them with those
// of kubelet and CRI-O: kubelet's span is the parent of Husk's, and Husk's is the
// parent of CRI-O's. It is set up from the [crio.tracing] table of crio.conf and
// samples as CRI-O does. No global provider or propagator is set.
//
// A span carries names, numbers and error kinds. Never the text of an error, a
// header or an annotation: what was not written here cannot leak.
package tracing

import (
	"context"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// DefaultEndpoint is CRI-O's default for tracing_endpoint.
const DefaultEndpoint = "127.0.0.1:4317"

const (
	// perMillion is what tracing_sampling_rate_per_million counts in.
	perMillion = 1_000_000
	// queueSpans and batchSpans bound the spans that wait for the collector. When
	// it is slow or gone, more are dropped: no call ever waits for it.
	queueSpans, batchSpans = 2048, 512
	// batchDelay is how long a span waits for company.
	batchDelay = 5 * time.Second
	// exportTimeout bounds one export, against a collector that accepts and is silent.
	exportTimeout = 5 * time.Second
	// shutdownTimeout bounds the last export, so that no collector holds up a stop.
	shutdownTimeout = 3 * time.Second
	// maxValueBytes and maxAttributes bound one span: names come from clients.
	maxValueBytes, maxAttributes = 512, 32
)

// Options say where spans go.
type Options struct {
	// Endpoint is the collector's host:port (OTLP over gRPC, without TLS, as CRI-O's).
	// Zero: [DefaultEndpoint].
	Endpoint string
	// SamplingPerMillion is how many of a million calls that kubelet does not trace
	// are traced. Zero: none. Calls that kubelet traces always are.
	SamplingPerMillion int
	// Version of Husk.
	Version string
	// Log is told when the collector goes and comes back. Zero: nobody is.
	Log *slog.Logger
}

// Tracer makes spans. A nil *Tracer makes none and costs nothing.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// Start returns a tracer that exports to the collector, which need not be there:
// the connection is made when there is something to send, and again when it is
// lost. Stop it with [Tracer.Shutdown].
func Start(ctx context.Context, o Options) (*Tracer, error) {
	if o.Endpoint == "" {
		o.Endpoint = DefaultEndpoint
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	otlp, err := otlptracegrpc.New(ctx,
		otlptracegrpc.WithEndpoint(o.Endpoint),
		otlptracegrpc.WithInsecure(),
		otlptracegrpc.WithTimeout(exportTimeout),
		// The first retry would come when the time is up; without it, a stop does not
		// wait for a collector that refuses.
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}),
	)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "trace to "+o.Endpoint, err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sampler(o.SamplingPerMillion))),
		sdktrace.WithResource(process(o.Version)),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit: maxValueBytes,
			AttributeCountLimit:       maxAttributes,
		}),
		sdktrace.WithBatcher(&exporter{SpanExporter: otlp, log: o.Log, endpoint: o.Endpoint},
			sdktrace.WithMaxQueueSize(queueSpans),
			sdktrace.WithMaxExportBatchSize(batchSpans),
			sdktrace.WithBatchTimeout(batchDelay),
			sdktrace.WithExportTimeout(exportTimeout),
		),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("github.com/husk-cri/husk")}, nil
}

// sampler decides on calls that bring no decision of kubelet's, as CRI-O does:
// the same share, taken from the trace ID, so that both keep the same traces.
func sampler(rate int) sdktrace.Sampler {
	if rate <= 0 {
		return sdktrace.NeverSample()
	}
	return sdktrace.TraceIDRatioBased(float64(rate) / perMillion)
}

// process describes this process with the attributes that CRI-O has.
func process(version string) *resource.Resource {
	attrs := []attribute.KeyValue{
		attribute.String("service.name", "husk"),
		attribute.String("service.version", version),
		attribute.Int("process.pid", os.Getpid()),
	}
	// A node without a name can still be traced.
	if host, err := os.Hostname(); err == nil {
		attrs = append(attrs, attribute.String("host.name", host))
	}
	return resource.NewSchemaless(attrs...)
}

// Shutdown exports what is left, for three seconds at most, even when ctx is
// already done. The tracer makes no spans afterwards.
func (t *Tracer) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return errdefs.New(errdefs.KindOf(err), "export the last traces", err)
	}
	return nil
}

// exporter keeps failures from OpenTelemetry's global error handler, which would
// print one to stderr with each batch, and logs when they begin and end.
type exporter struct {
	sdktrace.SpanExporter
	log      *slog.Logger
	endpoint string
	failing  atomic.Bool
}

// ExportSpans exports the spans, or drops them.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	switch failed := err != nil; {
	case failed && !e.failing.Swap(true):
		e.log.WarnContext(ctx, "the trace collector takes no spans: they are dropped until it does", "endpoint", e.endpoint, "error", err)
	case !failed && e.failing.Swap(false):
		e.log.InfoContext(ctx, "the trace collector takes spans again", "endpoint", e.endpoint)
	}
	return nil //nolint:nilerr // it ends here: its next stop would be the global handler
}
