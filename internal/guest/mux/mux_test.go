package mux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// serve serves s at a socket and returns it.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func dialTest(t *testing.T, socket string) *ttrpc.Client {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// upstreamServer is a real ttrpc server: an echo, a stream, and one that never answers.
func upstreamServer(t *testing.T) (socket string, server *ttrpc.Server, called <-chan struct{}) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "up")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server, err = ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan struct{}, 1)
	server.RegisterService("up.Service", &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{
			"Echo": func(_ context.Context, unmarshal func(any) error) (any, error) {
				var m wrapperspb.StringValue
				return &m, unmarshal(&m)
			},
			"Hang": func(ctx context.Context, _ func(any) error) (any, error) {
				calls <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			},
		},
		Streams: map[string]ttrpc.Stream{"Double": {StreamingClient: true, StreamingServer: true, Handler: double}},
	})
	go func() { _ = server.Serve(t.Context(), l) }()
	t.Cleanup(func() { _ = server.Close() })
	return socket, server, calls
}

func double(_ context.Context, stream ttrpc.StreamServer) (any, error) {
	for {
		var m wrapperspb.Int64Value
		if err := stream.RecvMsg(&m); err != nil {
			return nil, nil //nolint:nilerr // the client has closed
		}
		if err := stream.SendMsg(wrapperspb.Int64(2 * m.Value)); err != nil {
			return nil, err
		}
	}
}

func local() map[string]Method {
	return map[string]Method{
		"local.Service/Upper": func(_ context.Context, payload []byte) (proto.Message, error) {
			var m wrapperspb.StringValue
			err := proto.Unmarshal(payload, &m)
			return wrapperspb.String(strings.ToUpper(m.Value)), err
		},
		"local.Service/Wait": func(ctx context.Context, _ []byte) (proto.Message, error) {
			<-ctx.Done()
			return nil, status.FromContextError(ctx.Err()).Err()
		},
		"local.Service/Plain": func(context.Context, []byte) (proto.Message, error) { return nil, errors.New("plain") },
		"local.Service/Huge": func(context.Context, []byte) (proto.Message, error) {
			return wrapperspb.Bytes(make([]byte, maxFrame)), nil
		},
	}
}

func TestServesAndForwardsOnOneConnection(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	up, _, _ := upstreamServer(t)
	c := dialTest(t, serve(t, &Server{Methods: local(), Upstream: up}))
	for range 3 {
		var m wrapperspb.StringValue
		g.Expect(c.Call(t.Context(), "local.Service", "Upper", wrapperspb.String("a"), &m)).To(Succeed())
		g.Expect(m.Value).To(Equal("A"))
		g.Expect(c.Call(t.Context(), "up.Service", "Echo", wrapperspb.String("b"), &m)).To(Succeed())
		g.Expect(m.Value).To(Equal("b"))
	}
	stream, err := c.NewStream(t.Context(), &ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}, "up.Service", "Double", nil)
	g.Expect(err).NotTo(HaveOccurred())
	for i := range int64(3) {
		var m wrapperspb.Int64Value
		g.Expect(stream.SendMsg(wrapperspb.Int64(i))).To(Succeed())
		g.Expect(stream.RecvMsg(&m)).To(Succeed())
		g.Expect(m.Value).To(Equal(2 * i))
	}
	g.Expect(stream.CloseSend()).To(Succeed())
	g.Expect(stream.RecvMsg(&wrapperspb.Int64Value{})).To(MatchError(io.EOF))
}

func TestErrors(t *testing.T) {
	t.Parallel()
	up, _, _ := upstreamServer(t)
	with, without := dialTest(t, serve(t, &Server{Methods: local(), Upstream: up})), dialTest(t, serve(t, &Server{Methods: local()}))
	dead := dialTest(t, serve(t, &Server{Methods: local(), Upstream: filepath.Join(t.TempDir(), "none")}))
	for name, tc := range map[string]struct {
		client          *ttrpc.Client
		service, method string
		code            codes.Code
	}{
		"no upstream":              {without, "up.Service", "Echo", codes.Unimplemented},
		"dead upstream":            {dead, "up.Service", "Echo", codes.Unavailable},
		"unknown service":          {with, "other.Service", "Echo", codes.Unimplemented},
		"unknown method":           {with, "local.Service", "Other", codes.Unimplemented},
		"plain error":              {with, "local.Service", "Plain", codes.Internal},
		"answer over the limit":    {with, "local.Service", "Huge", codes.ResourceExhausted},
		"local without upstream":   {without, "local.Service", "Upper", codes.OK},
		"local with one not there": {dead, "local.Service", "Upper", codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tc.client.Call(t.Context(), tc.service, tc.method, wrapperspb.String("a"), &wrapperspb.BytesValue{})
			NewWithT(t).Expect(status.Code(err)).To(Equal(tc.code), "%v", err)
		})
	}
}

func TestDeadlineOfTheRequest(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := serve(t, &Server{Methods: local()})
	conn, err := net.Dial("unix", socket)
	g.Expect(err).NotTo(HaveOccurred())
	// By hand: a client of containerd's would give up by itself.
	data, err := proto.Marshal(&ttrpc.Request{Service: "local.Service", Method: "Wait", TimeoutNano: int64(10 * time.Millisecond)})
	g.Expect(err).NotTo(HaveOccurred())
	p := &peer{conn: conn}
	g.Expect(p.send(frame{stream: 1, kind: typeRequest, payload: data})).To(Succeed())
	f, err := readFrame(conn)
	g.Expect(err).NotTo(HaveOccurred())
	var resp ttrpc.Response
	g.Expect(proto.Unmarshal(f.payload, &resp)).To(Succeed())
	g.Expect(codes.Code(resp.Status.GetCode())).To(Equal(codes.DeadlineExceeded))
}

func TestUpstreamThatGoesAnswersWhatIsOpen(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	up, server, called := upstreamServer(t)
	c := dialTest(t, serve(t, &Server{Methods: local(), Upstream: up}))
	failed := make(chan error, 1)
	go func() {
		failed <- c.Call(t.Context(), "up.Service", "Hang", wrapperspb.String(""), &wrapperspb.StringValue{})
	}()
	<-called
	g.Expect(server.Close()).To(Succeed())
	g.Expect(status.Code(<-failed)).To(Or(Equal(codes.Unavailable), Equal(codes.Canceled)))
	var m wrapperspb.StringValue
	g.Expect(c.Call(t.Context(), "local.Service", "Upper", wrapperspb.String("a"), &m)).To(Succeed(), "the client's connection lives")
	// And when it is back, it is asked again.
	l, err := net.Listen("unix", up)
	g.Expect(err).NotTo(HaveOccurred())
	second, err := ttrpc.NewServer()
	g.Expect(err).NotTo(HaveOccurred())
	second.Register("up.Service", map[string]ttrpc.Method{"Echo": func(context.Context, func(any) error) (any, error) {
		return wrapperspb.String("back"), nil
	}})
	go func() { _ = second.Serve(t.Context(), l) }()
	t.Cleanup(func() { _ = second.Close() })
	g.Expect(c.Call(t.Context(), "up.Service", "Echo", wrapperspb.String(""), &m)).To(Succeed())
	g.Expect(m.Value).To(Equal("back"))
}

func TestBounds(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := serve(t, &Server{Methods: local()})
	conn, err := net.Dial("unix", socket)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = conn.Close() }()
	p := &peer{conn: conn}
	code := func() codes.Code {
		f, err := readFrame(conn)
		g.Expect(err).NotTo(HaveOccurred())
		var resp ttrpc.Response
		g.Expect(proto.Unmarshal(f.payload, &resp)).To(Succeed())
		return codes.Code(resp.Status.GetCode())
	}
	// A frame over the limit is skipped and answered.
	g.Expect(p.send(frame{stream: 1, kind: typeRequest, payload: make([]byte, maxFrame+1)})).To(Succeed())
	g.Expect(code()).To(Equal(codes.ResourceExhausted))
	// Garbage is answered.
	g.Expect(p.send(frame{stream: 3, kind: typeRequest, payload: []byte{0xff}})).To(Succeed())
	g.Expect(code()).To(Equal(codes.InvalidArgument))
	// Too many requests at once.
	data, err := proto.Marshal(&ttrpc.Request{Service: "local.Service", Method: "Wait"})
	g.Expect(err).NotTo(HaveOccurred())
	for i := range uint32(maxCalls + 1) {
		g.Expect(p.send(frame{stream: 5 + 2*i, kind: typeRequest, payload: data})).To(Succeed())
	}
	g.Expect(code()).To(Equal(codes.ResourceExhausted))
	// Data of a stream that there is not is nobody's.
	g.Expect(p.send(frame{stream: 999, kind: 3, payload: []byte("x")})).To(Succeed())
	// Too many clients: the last is turned away, and so is its request.
	var last net.Conn
	for range maxConnections {
		next, err := net.Dial("unix", socket)
		g.Expect(err).NotTo(HaveOccurred())
		defer func() { _ = next.Close() }() // not before: one that the collector closes makes room
		last = next
	}
	_, err = readFrame(last)
	g.Expect(err).To(HaveOccurred())
}

func FuzzReadFrame(f *testing.F) {
	header := make([]byte, headerBytes)
	binary.BigEndian.PutUint32(header, 3)
	f.Add(append(header, "abc"...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := readFrame(bytes.NewReader(data))
		if err == nil && (len(got.payload) > maxFrame || len(got.payload) > len(data)-headerBytes) {
			t.Errorf("a payload of %d bytes from %d", len(got.payload), len(data))
		}
	})
}
