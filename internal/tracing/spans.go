package tracing

import (
	"context"
	"errors"
	"strings"

	"github.com/distribution/reference"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The attributes of Husk's own. The names are stable: dashboards use them.
const (
	keyImage     = attribute.Key("husk.image")
	keyErrorKind = attribute.Key("husk.error.kind")
	keyRequests  = attribute.Key("husk.registry.requests")
	keyBytes     = attribute.Key("husk.registry.bytes")
	keyNamespace = attribute.Key("k8s.namespace.name")
)

// notAReference stands for an image name that is none. What is in it is anybody's
// guess ("user:password@registry/app"), so it is not repeated.
const notAReference = "(not a reference)"

// carrier reads and writes gRPC metadata.
type carrier metadata.MD

var _ propagation.TextMapCarrier = carrier(nil)

func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}

// ended is the end of a span that is not there.
func ended(error) {}

// Intercept starts the span of an intercepted call. ctx is the call's, with the
// client's metadata; in the returned one the metadata names the new span as the
// parent, for the calls to CRI-O that are made on behalf of the client. All else
// in it is as the client sent it. Call end with the error that answers the call.
func (t *Tracer) Intercept(ctx context.Context, method string) (_ context.Context, end func(error)) {
	if t == nil {
		return ctx, ended
	}
	propagator := propagation.TraceContext{}
	incoming, _ := metadata.FromIncomingContext(ctx) // a copy
	name := strings.TrimPrefix(method, "/")
	service, rpc, _ := strings.Cut(name, "/")
	ctx, span := t.tracer.Start(propagator.Extract(ctx, carrier(incoming)), name,
		trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(
			attribute.String("rpc.system", "grpc"),
			attribute.String("rpc.service", service),
			attribute.String("rpc.method", rpc),
		))
	if incoming == nil {
		incoming = metadata.MD{}
	}
	// The state of a parent that was not understood does not belong to this span.
	incoming.Delete("tracestate")
	propagator.Inject(ctx, carrier(incoming))
	return metadata.NewIncomingContext(ctx, incoming), func(err error) {
		span.SetAttributes(attribute.Int64("rpc.grpc.status_code", int64(status.Code(errdefs.ToGRPC(err)))))
		finish(span, err)
	}
}

// finish ends the span with what kind of error err is, or with the gRPC code of an
// answer. Its text stays in the log, which names the span.
func finish(span trace.Span, err error) {
	defer span.End()
	if err == nil || !span.IsRecording() {
		return
	}
	var what string
	var own *errdefs.Error
	if answered, ok := status.FromError(err); ok && !errors.As(err, &own) {
		what = answered.Code().String() // CRI-O's answer, or one that has lost its kind
	} else {
		what = errdefs.KindOf(err).String()
		span.SetAttributes(keyErrorKind.String(what))
	}
	span.SetStatus(otelcodes.Error, what)
}

// Trace is [Tracer.Intercept] for a stream: the one returned has the new context.
func (t *Tracer) Trace(stream grpc.ServerStream, method string) (_ grpc.ServerStream, end func(error)) {
	if t == nil {
		return stream, ended
	}
	ctx, end := t.Intercept(stream.Context(), method)
	return &traced{ServerStream: stream, ctx: ctx}, end
}

// traced is a stream with a context of its own.
type traced struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // grpc.ServerStream hands its context out by a method
}

// Context returns the context that carries the span.
func (s *traced) Context() context.Context { return s.ctx }

// Pull says what is pulled and for whom. What is "" is left out of the span.
type Pull struct {
	// Image as the client wrote it.
	Image string
	// Namespace is the pod's.
	Namespace string
}

// noPull is the end of a pull that is not traced.
func noPull(int, int64, error) {}

// Pull starts the span of a metadata pull, below the span of ctx. Call end with
// the requests made and the bytes read, and with how the pull ended.
func (t *Tracer) Pull(ctx context.Context, p Pull) (_ context.Context, end func(requests int, bytes int64, err error)) {
	if t == nil {
		return ctx, noPull
	}
	ctx, span := t.tracer.Start(ctx, "pull image metadata")
	if !span.IsRecording() {
		return ctx, func(int, int64, error) { span.End() }
	}
	span.SetAttributes(keyImage.String(imageName(p.Image)))
	if p.Namespace != "" {
		span.SetAttributes(keyNamespace.String(p.Namespace))
	}
	return ctx, func(requests int, bytes int64, err error) {
		span.SetAttributes(keyRequests.Int(requests), keyBytes.Int64(bytes))
		finish(span, err)
	}
}

// imageName returns name if it is a reference or an ID, in which there is no room
// for a credential.
func imageName(name string) string {
	if _, err := reference.ParseAnyReference(name); err != nil {
		return notAReference
	}
	return name
}
