package forward_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/husk-cri/husk/internal/front/forward"
)

// No .proto knows these methods; that is the point.
const (
	echoMethod   = "/future.v9.FutureService/Echo"
	failMethod   = "/future.v9.FutureService/Fail"
	waitMethod   = "/future.v9.FutureService/Wait"
	streamMethod = "/future.v9.FutureService/Chat"
	slowMethod   = "/future.v9.FutureService/Slow"
	busyMethod   = "/future.v9.FutureService/Busy"
	floodMethod  = "/future.v9.FutureService/Flood"
	// floodBytes is the size of each message of a flood.
	floodBytes = 1 << 20
)

// fakeCRIO is a real gRPC server with methods of its own, and HTTP on request.
type fakeCRIO struct {
	seen     chan metadata.MD
	deadline chan bool
	canceled chan error
	slow     atomic.Pointer[chan struct{}] // slowMethod answers when it is closed
	flood    atomic.Bool                   // eventsMethod floods
	sent     atomic.Int64                  // messages of a flood that gRPC has taken
}

func newFakeCRIO() *fakeCRIO {
	return &fakeCRIO{seen: make(chan metadata.MD, 256), deadline: make(chan bool, 256), canceled: make(chan error, 256)}
}

// pour sends until the call ends.
func (f *fakeCRIO) pour(stream grpc.ServerStream) error {
	message := wrapperspb.Bytes(make([]byte, floodBytes))
	for {
		if err := stream.SendMsg(message); err != nil {
			return err
		}
		f.sent.Add(1)
	}
}

func (f *fakeCRIO) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	md, _ := metadata.FromIncomingContext(stream.Context())
	f.seen <- md
	_, timed := stream.Context().Deadline()
	f.deadline <- timed
	switch method {
	case failMethod:
		stream.SetTrailer(metadata.Pairs("crio-trailer", "failed"))
		failed, err := status.New(codes.DataLoss, "lost it").WithDetails(&errdetails.ErrorInfo{Reason: "moon", Domain: "crio"})
		if err != nil {
			return err
		}
		return failed.Err()
	case busyMethod:
		return status.Error(codes.Unavailable, "the runtime is busy")
	case slowMethod:
		<-*f.slow.Load()
		if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			return err
		}
		return stream.SendMsg(bytesOf("slow"))
	case floodMethod:
		return f.pour(stream)
	case eventsMethod:
		if f.flood.Load() {
			return f.pour(stream)
		}
		fallthrough
	case waitMethod:
		<-stream.Context().Done()
		f.canceled <- stream.Context().Err()
		return stream.Context().Err()
	}
	if err := stream.SetHeader(metadata.Pairs("crio-header", "yes", "crio-bin", "\x00\x01")); err != nil {
		return err
	}
	stream.SetTrailer(metadata.Pairs("crio-trailer", "bye"))
	for {
		in := new(wrapperspb.BytesValue)
		if err := stream.RecvMsg(in); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		in.Value = append([]byte("echo:"), in.Value...)
		if err := stream.SendMsg(in); err != nil {
			return err
		}
	}
}

func (f *fakeCRIO) start(t *testing.T, socket string) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	server := grpc.NewServer(grpc.UnknownServiceHandler(f.handle))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return server.Stop
}

// front starts a front for the backend socket and returns its own socket.
func front(t *testing.T, backend string, options forward.Options) string {
	t.Helper()
	g := NewWithT(t)
	b, err := forward.NewBackend(backend, options)
	g.Expect(err).NotTo(HaveOccurred())
	socket := filepath.Join(t.TempDir(), "front.sock")
	listener, err := net.Listen("unix", socket)
	g.Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	handler := func(_ any, stream grpc.ServerStream) error { return b.Forward(stream) }
	go func() { done <- b.Serve(ctx, listener, handler, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		g.Expect(<-done).To(Succeed())
		g.Expect(b.Close()).To(Succeed())
	})
	return socket
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func setup(t *testing.T) (*fakeCRIO, *grpc.ClientConn) {
	t.Helper()
	crio := newFakeCRIO()
	socket := filepath.Join(t.TempDir(), "crio.sock")
	crio.start(t, socket)
	return crio, dial(t, front(t, socket, forward.Options{}))
}

func bytesOf(s string) *wrapperspb.BytesValue { return wrapperspb.Bytes([]byte(s)) }

func TestForwardUnknownUnaryMethod(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio, conn := setup(t)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-1-2-01", "x-bin", "\xff\x00"), time.Minute)
	defer cancel()
	var header, trailer metadata.MD
	answer := new(wrapperspb.BytesValue)
	g.Expect(conn.Invoke(ctx, echoMethod, bytesOf("hello"), answer, grpc.Header(&header), grpc.Trailer(&trailer))).To(Succeed())
	g.Expect(answer.Value).To(BeEquivalentTo("echo:hello"))
	g.Expect(header).To(And(HaveKeyWithValue("crio-header", []string{"yes"}), HaveKeyWithValue("crio-bin", []string{"\x00\x01"})))
	g.Expect(trailer).To(HaveKeyWithValue("crio-trailer", []string{"bye"}))
	seen := <-crio.seen
	g.Expect(seen).To(And(HaveKeyWithValue("traceparent", []string{"00-1-2-01"}), HaveKeyWithValue("x-bin", []string{"\xff\x00"})))
	// CRI-O's multiplexer accepts exactly this one.
	g.Expect(seen.Get("content-type")).To(Equal([]string{"application/grpc"}))
	g.Expect(<-crio.deadline).To(BeTrue())
}

// TestAnyPath: a socket's path is no URL.
func TestAnyPath(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "a#b?c%41 é.sock")
	newFakeCRIO().start(t, socket)
	conn, err := grpc.NewClient(forward.Target(socket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = conn.Close() })
	through, err := grpc.NewClient(forward.Target(front(t, socket, forward.Options{})), grpc.WithTransportCredentials(insecure.NewCredentials()))
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = through.Close() })
	for _, c := range []*grpc.ClientConn{conn, through} {
		answer := new(wrapperspb.BytesValue)
		g.Expect(c.Invoke(t.Context(), echoMethod, bytesOf("hello"), answer)).To(Succeed())
	}
}

func TestForwardError(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, conn := setup(t)
	var trailer metadata.MD
	err := conn.Invoke(t.Context(), failMethod, bytesOf(""), new(wrapperspb.BytesValue), grpc.Trailer(&trailer))
	got := status.Convert(err)
	g.Expect(got.Code()).To(Equal(codes.DataLoss))
	g.Expect(got.Message()).To(Equal("lost it"))
	g.Expect(got.Details()).To(HaveLen(1))
	info, ok := got.Details()[0].(*errdetails.ErrorInfo)
	g.Expect(ok).To(BeTrue())
	g.Expect(info.GetReason()).To(Equal("moon"))
	g.Expect(trailer).To(HaveKeyWithValue("crio-trailer", []string{"failed"}))
}

func TestForwardBidirectionalStream(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, conn := setup(t)
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, streamMethod)
	g.Expect(err).NotTo(HaveOccurred())
	for i := range 100 { // each answer before the next question: nothing waits in a buffer
		g.Expect(stream.SendMsg(bytesOf(fmt.Sprint(i)))).To(Succeed())
		answer := new(wrapperspb.BytesValue)
		g.Expect(stream.RecvMsg(answer)).To(Succeed())
		g.Expect(answer.Value).To(BeEquivalentTo(fmt.Sprint("echo:", i)))
	}
	g.Expect(stream.CloseSend()).To(Succeed())
	g.Expect(stream.RecvMsg(new(wrapperspb.BytesValue))).To(MatchError(io.EOF))
	g.Expect(stream.Trailer()).To(HaveKeyWithValue("crio-trailer", []string{"bye"}))
}

func TestForwardCancellation(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio, conn := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- conn.Invoke(ctx, waitMethod, bytesOf(""), new(wrapperspb.BytesValue)) }()
	<-crio.seen
	cancel()
	g.Eventually(crio.canceled, "10s").Should(Receive(MatchError(context.Canceled)))
	g.Expect(status.Code(<-done)).To(Equal(codes.Canceled))

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := conn.Invoke(ctx, waitMethod, bytesOf(""), new(wrapperspb.BytesValue))
	g.Expect(status.Code(err)).To(Equal(codes.DeadlineExceeded))
	g.Eventually(crio.canceled, "10s").Should(Receive())
}

func TestBackendDownAndBack(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := newFakeCRIO()
	socket := filepath.Join(t.TempDir(), "crio.sock")
	conn := dial(t, front(t, socket, forward.Options{}))
	call := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return conn.Invoke(ctx, echoMethod, bytesOf(""), new(wrapperspb.BytesValue))
	}
	err := call()
	g.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	g.Expect(err).To(MatchError(ContainSubstring("CRI-O does not answer on " + socket + ": ")))

	stop := crio.start(t, socket)
	g.Eventually(call, "5s", "50ms").Should(Succeed())
	stop()
	g.Expect(os.RemoveAll(socket)).To(Succeed())
	g.Expect(status.Code(call())).To(Equal(codes.Unavailable))
	crio.start(t, socket)
	g.Eventually(call, "5s", "50ms").Should(Succeed())
}

func TestMessageLimits(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := newFakeCRIO()
	socket := filepath.Join(t.TempDir(), "crio.sock")
	crio.start(t, socket)
	both := forward.Options{MaxSendBytes: 1 << 10, MaxRecvBytes: 1 << 10}
	// The echo is 5 bytes longer than what is sent, and both have 3 bytes around them.
	for _, c := range []struct {
		options forward.Options
		size    int
		want    codes.Code
	}{
		{both, 512, codes.OK},
		{both, 2 << 10, codes.ResourceExhausted},
		{both, 1<<10 - 4, codes.ResourceExhausted}, // one byte under the limit in, over the limit back
		{forward.Options{MaxRecvBytes: 1 << 10}, 1<<10 - 4, codes.OK},
		{forward.Options{MaxRecvBytes: 1 << 10}, 2 << 10, codes.ResourceExhausted},
		{forward.Options{MaxSendBytes: 1 << 10}, 512, codes.OK},
		{forward.Options{MaxSendBytes: 1 << 10}, 1<<10 - 4, codes.ResourceExhausted},
		{forward.Options{MaxSendBytes: 4 << 10, MaxRecvBytes: 1 << 10}, 1<<10 - 4, codes.OK},
		{forward.Options{}, 1 << 20, codes.OK},
	} {
		err := dial(t, front(t, socket, c.options)).Invoke(t.Context(), echoMethod, bytesOf(strings.Repeat("x", c.size)), new(wrapperspb.BytesValue))
		g.Expect(status.Code(err)).To(Equal(c.want), "%d bytes, %+v: %v", c.size, c.options, err)
	}
}

func TestManyFramesAreNotMixedUp(t *testing.T) {
	t.Parallel()
	_, conn := setup(t)
	results := make(chan error, 64)
	for i := range cap(results) {
		go func() {
			want := strings.Repeat(fmt.Sprintf("%03d", i), 10_000)
			answer := new(wrapperspb.BytesValue)
			err := conn.Invoke(t.Context(), echoMethod, bytesOf(want), answer)
			if err == nil && string(answer.Value) != "echo:"+want {
				err = errors.New("another call's bytes")
			}
			results <- err
		}()
	}
	for range cap(results) {
		NewWithT(t).Expect(<-results).To(Succeed())
	}
}

func TestGarbageIsClosed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, conn := setup(t)
	raw, err := net.Dial("unix", strings.TrimPrefix(conn.Target(), "unix:"))
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(raw.Close()).To(Succeed()) }()
	_, err = raw.Write([]byte("\x16\x03\x01 this is not a preface"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(raw.SetReadDeadline(time.Now().Add(10 * time.Second))).To(Succeed())
	_, err = bufio.NewReader(raw).ReadByte()
	g.Expect(err).To(HaveOccurred())
	g.Expect(err).NotTo(MatchError(os.ErrDeadlineExceeded))
	// Others are served on.
	g.Expect(conn.Invoke(t.Context(), echoMethod, bytesOf(""), new(wrapperspb.BytesValue))).To(Succeed())
}
