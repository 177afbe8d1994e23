package tracing_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/husk-cri/husk/internal/tracing"
)

// collector is a real OTLP collector that keeps what it is sent.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	endpoint string
	mu       sync.Mutex
	requests []*collectorpb.ExportTraceServiceRequest
}

func (c *collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, r)
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// spans returns every span by "version: name"; two of one name fail the test.
func (c *collector) spans(t *testing.T) map[string]*tracepb.Span {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	found := map[string]*tracepb.Span{}
	for _, r := range c.requests {
		for _, rs := range r.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					version := attributes(rs.GetResource().GetAttributes())["service.version"]
					name := fmt.Sprint(version, ": ", s.GetName())
					NewWithT(t).Expect(found).NotTo(HaveKey(name))
					found[name] = s
				}
			}
		}
	}
	return found
}

// dump returns all that was exported as text.
func (c *collector) dump() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all string
	for _, r := range c.requests {
		all += prototext.Format(r) + r.String()
	}
	return all
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := new(collector)
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, c)
	c.endpoint = listen(t, server)
	return c
}

func listen(t *testing.T, server *grpc.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// start returns a tracer whose spans are told apart by the version.
func start(t *testing.T, c *collector, who string, rate int) *tracing.Tracer {
	t.Helper()
	tracer, err := tracing.Start(t.Context(), tracing.Options{Endpoint: c.endpoint, SamplingPerMillion: rate, Version: who})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return tracer
}

// node is kubelet -> Husk -> CRI-O, over real gRPC. What the two servers do is
// given; what CRI-O saw of the metadata is in seen.
type node struct {
	seen    chan metadata.MD
	kubelet *grpc.ClientConn
}

// startNode lets husk handle the call in the middle; it is given a function that
// asks CRI-O on behalf of the client.
func startNode(t *testing.T, husk, crio *tracing.Tracer, handle func(ctx context.Context, ask func(context.Context) error) error) node {
	t.Helper()
	n := node{seen: make(chan metadata.MD, 16)}
	behind := dial(t, listen(t, grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) (err error) {
		md, _ := metadata.FromIncomingContext(stream.Context())
		n.seen <- md
		_, end := crio.Trace(stream, method)
		defer func() { end(err) }()
		return answer(stream)
	}))))
	// As forward.Backend does it: the metadata of the call goes along.
	ask := func(ctx context.Context) error {
		md, _ := metadata.FromIncomingContext(ctx)
		return behind.Invoke(metadata.NewOutgoingContext(ctx, md), method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	n.kubelet = dial(t, listen(t, grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) (err error) {
		stream, end := husk.Trace(stream, method)
		defer func() { end(err) }()
		if err := handle(stream.Context(), ask); err != nil {
			return err
		}
		return answer(stream)
	}))))
	return n
}

func (n node) call(ctx context.Context) error {
	return n.kubelet.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
}

func answer(stream grpc.ServerStream) error {
	if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	return stream.SendMsg(&emptypb.Empty{})
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
