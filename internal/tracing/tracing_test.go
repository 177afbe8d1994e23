package tracing_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/tracing"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	method  = "/runtime.v1.ImageService/PullImage"
	always  = 1_000_000
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
	secret  = "hunter2hunter2"

	huskCall = "husk: runtime.v1.ImageService/PullImage"
	huskPull = "husk: pull image metadata"
	crioCall = "crio: runtime.v1.ImageService/PullImage"
)

func attributes(pairs []*commonpb.KeyValue) map[string]any {
	values := map[string]any{}
	for _, p := range pairs {
		switch v := p.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			values[p.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			values[p.GetKey()] = v.IntValue
		}
	}
	return values
}

func sampled(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+traceID+"-"+spanID+"-01")
}

// pullAndAsk is what the front does at PullImage, and asks CRI-O as well.
func pullAndAsk(tracer *tracing.Tracer, p tracing.Pull, failure error) func(context.Context, func(context.Context) error) error {
	return func(ctx context.Context, ask func(context.Context) error) error {
		_, end := tracer.Pull(ctx, p)
		end(4, 1234, failure)
		if failure != nil {
			return failure
		}
		return ask(ctx)
	}
}

func web() tracing.Pull {
	return tracing.Pull{Image: "reg.io/app:1", Namespace: "shop"}
}

// TestSpansJoin follows one trace from kubelet through Husk into CRI-O.
func TestSpansJoin(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := startCollector(t)
	husk, crio := start(t, c, "husk", 0), start(t, c, "crio", 0)
	n := startNode(t, husk, crio, pullAndAsk(husk, web(), nil))
	ctx := metadata.AppendToOutgoingContext(sampled(t.Context()), "tracestate", "kubelet=1", "baggage", "a=b", "x-bin", "\xff\x00")
	g.Expect(n.call(ctx)).To(Succeed())
	seen := <-n.seen
	g.Expect(husk.Shutdown(t.Context())).To(Succeed())
	g.Expect(crio.Shutdown(t.Context())).To(Succeed())

	spans := c.spans(t)
	g.Expect(spans).To(And(HaveLen(3), HaveKey(huskCall), HaveKey(huskPull), HaveKey(crioCall)))
	for name, s := range spans {
		g.Expect(hex.EncodeToString(s.GetTraceId())).To(Equal(traceID), name)
	}
	g.Expect(hex.EncodeToString(spans[huskCall].GetParentSpanId())).To(Equal(spanID), "Husk's span hangs below kubelet's")
	g.Expect(spans[huskPull].GetParentSpanId()).To(Equal(spans[huskCall].GetSpanId()))
	g.Expect(spans[crioCall].GetParentSpanId()).To(Equal(spans[huskCall].GetSpanId()), "CRI-O's span hangs below Husk's")

	g.Expect(seen.Get("traceparent")).To(Equal([]string{"00-" + traceID + "-" + hex.EncodeToString(spans[huskCall].GetSpanId()) + "-01"}))
	g.Expect(seen).To(And(HaveKeyWithValue("tracestate", []string{"kubelet=1"}), HaveKeyWithValue("baggage", []string{"a=b"}),
		HaveKeyWithValue("x-bin", []string{"\xff\x00"})), "all else is as kubelet sent it")

	g.Expect(spans[huskCall].GetKind()).To(Equal(tracepb.Span_SPAN_KIND_SERVER))
	g.Expect(attributes(spans[huskCall].GetAttributes())).To(Equal(map[string]any{
		"rpc.system": "grpc", "rpc.service": "runtime.v1.ImageService", "rpc.method": "PullImage", "rpc.grpc.status_code": int64(0)}))
	g.Expect(attributes(spans[huskPull].GetAttributes())).To(Equal(map[string]any{
		"husk.image": "reg.io/app:1", "k8s.namespace.name": "shop",
		"husk.registry.requests": int64(4), "husk.registry.bytes": int64(1234)}))
	g.Expect(attributes(c.requests[0].GetResourceSpans()[0].GetResource().GetAttributes())).To(And(
		HaveKeyWithValue("service.name", "husk"), HaveKey("host.name"), HaveKey("process.pid")))
}

func TestSampling(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		rate   int
		parent string
		spans  int
	}{
		"kubelet traces, rate 0":              {0, "00-" + traceID + "-" + spanID + "-01", 3},
		"kubelet decided against, every call": {always, "00-" + traceID + "-" + spanID + "-00", 0},
		"nobody asked, rate 0":                {0, "", 0},
		"nobody asked, every call":            {always, "", 3},
		"more than every call, as CRI-O":      {2 * always, "", 3},
		"less than none, as CRI-O":            {-1, "", 0},
		"a broken parent":                     {0, "00-" + strings.Repeat("0", 32) + "-" + spanID + "-01", 0},
		"garbage":                             {always, "'; drop table spans", 3},
	} {
		g := NewWithT(t)
		c := startCollector(t)
		husk, crio := start(t, c, "husk", test.rate), start(t, c, "crio", test.rate)
		n := startNode(t, husk, crio, pullAndAsk(husk, web(), nil))
		ctx := metadata.AppendToOutgoingContext(t.Context(), "tracestate", "stale=1")
		if test.parent != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", test.parent)
		}
		g.Expect(n.call(ctx)).To(Succeed())
		seen := <-n.seen
		g.Expect(husk.Shutdown(t.Context())).To(Succeed())
		g.Expect(crio.Shutdown(t.Context())).To(Succeed())
		spans := c.spans(t)
		g.Expect(spans).To(HaveLen(test.spans), name)
		g.Expect(seen.Get("traceparent")).To(HaveLen(1), name)
		g.Expect(strings.HasSuffix(seen.Get("traceparent")[0], "-01")).To(Equal(test.spans > 0), "CRI-O is told the decision: %s", name)
		if !strings.HasPrefix(test.parent, "00-"+traceID) {
			g.Expect(seen.Get("tracestate")).To(BeEmpty(), "the state of another trace: %s", name)
		}
		if test.spans > 0 {
			g.Expect(spans[crioCall].GetParentSpanId()).To(Equal(spans[huskCall].GetSpanId()), name)
		}
	}
}

// TestNoCredentialIsExported puts credentials wherever a call has room for them.
func TestNoCredentialIsExported(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		image   string
		failure error
		want    string
	}{
		"none":             {"reg.io/app:1", nil, "reg.io/app:1"},
		"in the name":      {"user:" + secret + "@reg.io/app:1", nil, "(not a reference)"},
		"in a URL":         {"https://user:" + secret + "@reg.io/app", nil, "(not a reference)"},
		"in a query":       {"reg.io/app?token=" + secret, nil, "(not a reference)"},
		"in an error":      {"reg.io/app:1", errdefs.New(errdefs.Unauthorized, "pull user:"+secret+"@reg.io/app", errors.New(secret)), "unauthorized"},
		"in a plain error": {"reg.io/app:1", errors.New("password " + secret), "internal"},
		"in CRI-O's error": {"reg.io/app:1", status.Error(codes.NotFound, "no "+secret), "NotFound"},
	} {
		g := NewWithT(t)
		c := startCollector(t)
		husk := start(t, c, "husk", always)
		n := startNode(t, husk, nil, pullAndAsk(husk, tracing.Pull{Image: test.image}, test.failure))
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secret, "baggage", "k="+secret)
		err := n.call(ctx)
		g.Expect(err != nil).To(Equal(test.failure != nil), name)
		g.Expect(husk.Shutdown(t.Context())).To(Succeed())
		g.Expect(c.spans(t)).To(HaveLen(2), name)
		g.Expect(c.dump()).To(ContainSubstring(test.want), name)
		g.Expect(c.dump()).NotTo(ContainSubstring(secret), name)
		if test.failure != nil {
			g.Expect(c.spans(t)[huskPull].GetStatus().GetCode()).To(Equal(tracepb.Status_STATUS_CODE_ERROR), name)
		}
	}
}

func TestErrorsByKind(t *testing.T) {
	t.Parallel()
	tooLarge := errdefs.New(errdefs.TooLarge, "pull reg.io/app:1", nil)
	down := errdefs.New(errdefs.RegistryUnavailable, "pull reg.io/app:1", nil)
	for name, test := range map[string]struct {
		failure error
		what    string
		kind    any
		code    codes.Code
	}{
		"a kind":           {tooLarge, "too-large", "too-large", codes.ResourceExhausted},
		"wrapped":          {fmt.Errorf("x: %w", down), "registry-unavailable", "registry-unavailable", codes.Unknown},
		"canceled":         {context.Canceled, "canceled", "canceled", codes.Canceled},
		"plain":            {errors.New("x"), "internal", "internal", codes.Internal},
		"CRI-O's":          {status.Error(codes.NotFound, "x"), "NotFound", nil, codes.NotFound},
		"already answered": {errdefs.ToGRPC(down), "Unknown", nil, codes.Unknown},
	} {
		g := NewWithT(t)
		c := startCollector(t)
		husk := start(t, c, "husk", always)
		n := startNode(t, husk, nil, pullAndAsk(husk, web(), test.failure))
		g.Expect(n.call(t.Context())).NotTo(Succeed())
		g.Expect(husk.Shutdown(t.Context())).To(Succeed())
		for _, span := range []string{huskCall, huskPull} {
			s := c.spans(t)[span]
			g.Expect(s.GetStatus().GetMessage()).To(Equal(test.what), "%s, %s", name, span)
			kind := attributes(s.GetAttributes())["husk.error.kind"] // nil when there is none
			g.Expect(kind == test.kind).To(BeTrue(), "%s, %s: %v", name, span, kind)
		}
		g.Expect(attributes(c.spans(t)[huskCall].GetAttributes())).To(HaveKeyWithValue("rpc.grpc.status_code", int64(test.code)), name)
		g.Expect(attributes(c.spans(t)[huskPull].GetAttributes())).To(HaveKeyWithValue("husk.registry.requests", int64(4)), name)
	}
}

// TestLongNamesAreCut sends a namespace that no cluster has.
func TestLongNamesAreCut(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := startCollector(t)
	husk := start(t, c, "husk", always)
	_, end := husk.Pull(t.Context(), tracing.Pull{Image: "app", Namespace: strings.Repeat("x", 1<<20)})
	end(0, 0, nil)
	g.Expect(husk.Shutdown(t.Context())).To(Succeed())
	g.Expect(attributes(c.spans(t)[huskPull].GetAttributes())["k8s.namespace.name"]).To(HaveLen(512))
}

// contextOnly is a stream of which only the context is asked for.
type contextOnly struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream is its context here
}

func (s contextOnly) Context() context.Context { return s.ctx }

// TestNilTracer is a node without tracing: nothing is changed, nothing allocated.
func TestNilTracer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var none *tracing.Tracer
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "as it came"))
	var stream grpc.ServerStream = contextOnly{ctx: ctx}
	got, end := none.Trace(stream, method)
	end(errors.New("x"))
	g.Expect(got).To(BeIdenticalTo(stream))
	got2, end := none.Intercept(ctx, method)
	end(nil)
	g.Expect(got2).To(BeIdenticalTo(ctx))
	g.Expect(none.Shutdown(ctx)).To(Succeed())
	p := web()
	g.Expect(testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, end := none.Trace(stream, method)
			_, done := none.Pull(ctx, p)
			done(0, 0, nil)
			end(nil)
		}
	}).AllocsPerOp()).To(BeZero())
}

// observed is what the front wants of tracing (front.Tracer, by structure).
type observed interface {
	Trace(stream grpc.ServerStream, method string) (traced grpc.ServerStream, end func(error))
}

var _ observed = (*tracing.Tracer)(nil)

func TestNothingGlobalIsSet(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := startCollector(t)
	husk := start(t, c, "husk", always)
	_, span := otel.GetTracerProvider().Tracer("x").Start(t.Context(), "x")
	g.Expect(span.SpanContext().IsValid()).To(BeFalse())
	g.Expect(otel.GetTextMapPropagator().Fields()).To(BeEmpty())
	ctx, end := husk.Intercept(t.Context(), method)
	g.Expect(trace.SpanContextFromContext(ctx).IsSampled()).To(BeTrue(), "the log finds the span in the context")
	end(nil)
	g.Expect(husk.Shutdown(t.Context())).To(Succeed())
}

// lines receives each log line, and drops what nobody reads.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// TestCollectorThatIsNotThere makes many times more spans than may wait. A call
// that waited for room would wait for exports that take five seconds each.
func TestCollectorThatIsNotThere(t *testing.T) {
	t.Parallel()
	const calls = 20_000
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = silent.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	NewWithT(t).Expect(closed.Close()).To(Succeed())
	for name, endpoint := range map[string]string{"silent": silent.Addr().String(), "refused": closed.Addr().String(), "no such host": "collector.invalid:4317"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			logged := make(lines, 16)
			husk, err := tracing.Start(t.Context(), tracing.Options{
				Endpoint: endpoint, SamplingPerMillion: always, Log: slog.New(slog.NewTextHandler(logged, nil))})
			g.Expect(err).NotTo(HaveOccurred())
			started := time.Now()
			for range calls {
				ctx, end := husk.Intercept(t.Context(), method)
				_, done := husk.Pull(ctx, web())
				done(1, 1, nil)
				end(nil)
			}
			g.Expect(time.Since(started)).To(BeNumerically("<", 5*time.Second), "no call waited for an export")
			g.Eventually(logged, "20s").Should(Receive(ContainSubstring("takes no spans")))
			started = time.Now()
			err = husk.Shutdown(t.Context())
			g.Expect(time.Since(started)).To(BeNumerically("<", 10*time.Second), fmt.Sprint(err))
			g.Expect(logged).NotTo(Receive(), "said once, not with every batch")
		})
	}
}

// TestShutdownOfAStoppingNode gives Shutdown the context that ended the daemon.
func TestShutdownOfAStoppingNode(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := startCollector(t)
	husk := start(t, c, "husk", always)
	ctx, cancel := context.WithCancel(t.Context())
	_, end := husk.Intercept(ctx, method)
	end(nil)
	cancel()
	g.Expect(husk.Shutdown(ctx)).To(Succeed())
	g.Expect(c.spans(t)).To(HaveKey(huskCall))
	_, end = husk.Intercept(t.Context(), method) // too late, and harmless
	end(nil)
}
