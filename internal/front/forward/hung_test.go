package forward_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/husk-cri/husk/internal/front/forward"
)

// TestBackendsOwnUnavailable is passed on as it is: CRI-O does answer.
func TestBackendsOwnUnavailable(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := newFakeCRIO()
	socket := filepath.Join(t.TempDir(), "crio.sock")
	crio.start(t, socket)
	e := startEnding(t, socket, forward.Options{})
	err := <-e.call(t.Context(), busyMethod)
	g.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	g.Expect(status.Convert(err).Message()).To(Equal("the runtime is busy"))
	b, err := forward.NewBackend(socket, forward.Options{})
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(b.Close()).To(Succeed()) }()
	_, err = b.Call(t.Context(), busyMethod, nil)
	g.Expect(status.Convert(err).Message()).To(Equal("the runtime is busy"))
}

// TestBackendDiesDuringCalls: calls of every kind say who has gone.
func TestBackendDiesDuringCalls(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := newFakeCRIO()
	socket := filepath.Join(t.TempDir(), "crio.sock")
	stop := crio.start(t, socket)
	e := startEnding(t, socket, forward.Options{})
	unary := e.call(t.Context(), waitMethod)
	events := e.call(t.Context(), eventsMethod)
	<-crio.seen
	<-crio.seen
	stop()
	for _, failed := range []chan error{unary, events} {
		err := <-failed
		g.Expect(status.Code(err)).To(Equal(codes.Unavailable))
		g.Expect(err).To(MatchError(ContainSubstring("CRI-O does not answer on " + socket + ": ")))
	}
}

// TestHungBackend has a CRI-O that accepts connections and says nothing: calls end
// at their own deadline, and without one when the attempt to connect does.
func TestHungBackend(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	listener, err := net.Listen("unix", socket)
	g.Expect(err).NotTo(HaveOccurred())
	e := startEnding(t, socket, forward.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	g.Expect(status.Code(<-e.call(ctx, echoMethod))).To(Equal(codes.DeadlineExceeded))
	g.Expect(time.Since(begun)).To(BeNumerically("<", 4*time.Second))

	err = <-e.call(t.Context(), echoMethod)
	g.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	g.Expect(err).To(MatchError(ContainSubstring("CRI-O does not answer on " + socket + ": ")))

	g.Expect(listener.Close()).To(Succeed())
	newFakeCRIO().start(t, socket)
	g.Eventually(func() error { return <-e.call(t.Context(), echoMethod) }, "10s", "50ms").Should(Succeed())
}

// frozen passes connections on until it is told to stop, as a CRI-O that got
// SIGSTOP: the connections stay, and nothing moves.
type frozen struct{ stop atomic.Bool }

func (f *frozen) serve(t *testing.T, socket, to string) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = listener.Close() })
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	pipe := func(dst io.Writer, src io.Reader) {
		buffer := make([]byte, 32<<10)
		for {
			n, err := src.Read(buffer)
			if f.stop.Load() || err != nil {
				return
			}
			if _, err := dst.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", to)
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, client, server)
			mu.Unlock()
			go pipe(server, client)
			go pipe(client, server)
		}
	}()
}

// TestPingsFindADeadBackend: a call without a deadline ends although its connection
// never breaks.
func TestPingsFindADeadBackend(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := newFakeCRIO()
	dir := t.TempDir()
	crio.start(t, filepath.Join(dir, "real.sock"))
	socket := filepath.Join(dir, "crio.sock")
	ice := new(frozen)
	ice.serve(t, socket, filepath.Join(dir, "real.sock"))
	// Ten seconds are the least that gRPC takes.
	e := startEnding(t, socket, forward.PingSooner(forward.Options{}, 10*time.Second, 100*time.Millisecond))
	failed := e.call(t.Context(), waitMethod)
	<-crio.seen
	ice.stop.Store(true)
	var err error
	g.Eventually(failed, "30s").Should(Receive(&err))
	g.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	g.Expect(err).To(MatchError(ContainSubstring("CRI-O does not answer on " + socket + ": ")))
}

// TestBackPressure has a CRI-O that streams as fast as it can to a client that does
// not read: CRI-O is held up, and the front holds no more than its windows.
func TestBackPressure(t *testing.T) {
	g := NewWithT(t) // not parallel: it measures memory
	crio := newFakeCRIO()
	socket := filepath.Join(t.TempDir(), "crio.sock")
	crio.start(t, socket)
	for _, method := range []string{floodMethod, eventsMethod} {
		crio.flood.Store(method == eventsMethod)
		crio.sent.Store(0)
		e := startEnding(t, socket, forward.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		before := heap()
		stream, err := e.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(stream.SendMsg(bytesOf(""))).To(Succeed())
		g.Expect(stream.CloseSend()).To(Succeed())
		var last int64
		g.Eventually(func() string { // until nothing has been sent for a while
			now := crio.sent.Load()
			defer func() { last = now }()
			return fmt.Sprint(now > 0 && now == last)
		}, "30s", "300ms").Should(Equal("true"))
		held := crio.sent.Load()
		// Two windows of 4 MiB, a message in each hand, and the client's own window.
		g.Expect(held).To(BeNumerically("<=", 16), method)
		g.Expect(heap()-before).To(BeNumerically("<", 64<<20), method)
		g.Consistently(crio.sent.Load, "500ms").Should(Equal(held), "%s: CRI-O is held up", method)
		for range held + 8 {
			g.Expect(stream.RecvMsg(new(wrapperspb.BytesValue))).To(Succeed())
		}
		g.Expect(crio.sent.Load()).To(BeNumerically(">", held), "%s: and goes on when the client does", method)
		cancel()
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}
