package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/tracing"
)

func TestCollectsSpans(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spans := filepath.Join(t.TempDir(), "spans")
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error)
	go func() { ended <- run(ctx, []string{"collect", "--spans", spans}, nil, w) }()
	address, err := bufio.NewReader(r).ReadString('\n')
	g.Expect(err).NotTo(HaveOccurred())

	tracer, err := tracing.Start(ctx, tracing.Options{Endpoint: strings.TrimSpace(address), SamplingPerMillion: 1_000_000})
	g.Expect(err).NotTo(HaveOccurred())
	outer, endOuter := tracer.Intercept(ctx, "/a.Service/Method")
	_, endInner := tracer.Pull(outer, tracing.Pull{Image: "registry.example/app:1"})
	endInner(3, 42, nil)
	endOuter(status.Error(codes.NotFound, "nothing"))
	g.Expect(tracer.Shutdown(ctx)).To(Succeed())
	cancel()
	g.Expect(<-ended).To(Succeed())

	data, err := os.ReadFile(spans)
	g.Expect(err).NotTo(HaveOccurred())
	var inner, around line
	from := json.NewDecoder(bytes.NewReader(data))
	g.Expect(from.Decode(&inner)).To(Succeed())
	g.Expect(from.Decode(&around)).To(Succeed())
	g.Expect(inner.Attributes).To(And(
		HaveKeyWithValue("husk.image", "registry.example/app:1"), HaveKeyWithValue("husk.registry.bytes", "42")))
	g.Expect([]string{inner.Trace, inner.Parent, inner.Service}).To(Equal([]string{around.Trace, around.Span, "husk"}))
	g.Expect(around.Status).To(Equal("STATUS_CODE_ERROR"))
	g.Expect(inner.Raw).To(ContainSubstring("registry.example/app:1"))
}

// runtime answers what the test asks.
type runtime struct {
	cri.UnimplementedRuntimeServiceServer
}

func (runtime) Version(ctx context.Context, r *cri.VersionRequest) (*cri.VersionResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return &cri.VersionResponse{Version: r.GetVersion(), RuntimeName: strings.Join(md.Get("traceparent"), ",")}, nil
}

func (runtime) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	for _, id := range []string{"a", "b"} {
		if err := stream.Send(&cri.ContainerEventResponse{ContainerId: id}); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "going away")
}

func TestCalls(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, runtime{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	for name, c := range map[string]struct{ method, request, answer, fails string }{
		"unary":    {"runtime.v1.RuntimeService/Version", `{"version":"v9"}`, `"version":"v9"`, ""},
		"metadata": {"runtime.v1.RuntimeService/Version", ``, `"runtimeName":"00-1-2-01"`, ""},
		"stream":   {"runtime.v1.RuntimeService/GetContainerEvents", ``, `"b"`, "Unavailable: going away"},
		"refused":  {"runtime.v1.RuntimeService/Status", ``, ``, "Unimplemented: "},
		"invented": {"runtime.v9.Nonsense/Do", ``, ``, "Unimplemented: "},
		"no JSON":  {"runtime.v1.RuntimeService/Version", `{`, ``, "read the request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			var out bytes.Buffer
			err := run(t.Context(), []string{"call", "--socket", socket, "--traceparent", "00-1-2-01", c.method}, strings.NewReader(c.request), &out)
			if c.fails == "" {
				g.Expect(err).NotTo(HaveOccurred())
			} else {
				g.Expect(err).To(MatchError(ContainSubstring(c.fails)))
			}
			g.Expect(strings.ReplaceAll(out.String(), " ", "")).To(ContainSubstring(c.answer))
		})
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"dance"}, {"call"}, {"call", "--socket", "/s"}, {"collect", "--spans", ""}, {"collect", "--dance"}} {
		NewWithT(t).Expect(run(t.Context(), args, nil, io.Discard)).NotTo(Succeed(), "%q", args)
	}
}
