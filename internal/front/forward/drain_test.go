package forward_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/husk-cri/husk/internal/front/forward"
	"github.com/husk-cri/husk/internal/handover"
)

const eventsMethod = "/future.v9.FutureService/Events"

// ending is a front that a test ends by itself.
type ending struct {
	conn   *grpc.ClientConn
	socket string
	end    context.CancelCauseFunc
	done   chan error
}

func startEnding(t *testing.T, crio string, options forward.Options) ending {
	t.Helper()
	g := NewWithT(t)
	b, err := forward.NewBackend(crio, options)
	g.Expect(err).NotTo(HaveOccurred())
	e := ending{socket: filepath.Join(t.TempDir(), "front.sock"), done: make(chan error, 1)}
	listener, err := net.Listen("unix", e.socket)
	g.Expect(err).NotTo(HaveOccurred())
	var ctx context.Context
	ctx, e.end = context.WithCancelCause(t.Context())
	handler := func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); method == eventsMethod {
			return b.ForwardEdited(stream, nil, func(message []byte) ([]byte, error) { return message, nil })
		}
		return b.Forward(stream)
	}
	go func() { e.done <- b.Serve(ctx, listener, handler, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		e.end(nil)
		g.Expect(b.Close()).To(Succeed())
	})
	e.conn = dial(t, e.socket)
	return e
}

func (e ending) call(ctx context.Context, method string) chan error {
	done := make(chan error, 1)
	go func() { done <- e.conn.Invoke(ctx, method, bytesOf(""), new(wrapperspb.BytesValue)) }()
	return done
}

func TestStopEndsCallsUnderWay(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := newFakeCRIO()
	backend := filepath.Join(t.TempDir(), "crio.sock")
	crio.start(t, backend)
	e := startEnding(t, backend, forward.Options{Stop: forward.Drain{Streams: time.Millisecond, Calls: 50 * time.Millisecond}})
	failed := e.call(t.Context(), waitMethod)
	<-crio.seen
	e.end(nil)
	g.Eventually(e.done, "10s").Should(Receive(Succeed()))
	g.Eventually(failed, "10s").Should(Receive(HaveOccurred()))
}

// TestHandoverLetsCallsEnd: once another husk serves, calls under way end in their
// own time, streams of events do not, and no call is begun here.
func TestHandoverLetsCallsEnd(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := newFakeCRIO()
	backend := filepath.Join(t.TempDir(), "crio.sock")
	crio.start(t, backend)
	release := make(chan struct{})
	crio.slow.Store(&release)
	short := forward.Drain{Streams: time.Millisecond, Calls: time.Millisecond}
	e := startEnding(t, backend, forward.Options{Stop: short, Handover: forward.Drain{Streams: 10 * time.Millisecond}})
	unary := e.call(t.Context(), slowMethod)
	<-crio.seen
	events, err := e.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, eventsMethod)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(events.SendMsg(bytesOf(""))).To(Succeed())
	g.Expect(events.CloseSend()).To(Succeed())
	<-crio.seen

	e.end(handover.ErrTaken)
	err = events.RecvMsg(new(wrapperspb.BytesValue))
	g.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	g.Expect(err).To(MatchError(ContainSubstring("open it again")))
	g.Expect(<-crio.canceled).To(MatchError(context.Canceled), "CRI-O's stream is not left open")
	_, err = net.Dial("unix", e.socket)
	g.Expect(err).To(HaveOccurred())
	g.Consistently(e.done, "200ms").ShouldNot(Receive())
	close(release)
	g.Eventually(unary, "10s").Should(Receive(Succeed()))
	g.Eventually(e.done, "10s").Should(Receive(Succeed()))
}

// TestHTTPDrains: a request under way gets its answer, an upgraded connection ends.
func TestHTTPDrains(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	asked, release := make(chan struct{}, 1), make(chan struct{})
	webCRIO(t, socket, func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "late")
	})
	e := startEnding(t, socket, forward.Options{})
	client, _ := webClient(t, e.socket)
	got := make(chan string, 1)
	go func() {
		answer, err := client.Get("http://crio/pause/x")
		if err != nil {
			got <- err.Error()
			return
		}
		defer func() { _ = answer.Body.Close() }()
		body, _ := io.ReadAll(answer.Body)
		got <- string(body)
	}()
	<-asked
	e.end(handover.ErrTaken)
	g.Consistently(e.done, "100ms").ShouldNot(Receive())
	close(release)
	g.Eventually(got, "10s").Should(Receive(Equal("late")))
	g.Eventually(e.done, "10s").Should(Receive(Succeed()))
}

// TestNoAcceptedConnectionIsLost: a connection that was accepted, and has said
// nothing yet, when serving ends is still told in HTTP/2 to go elsewhere.
func TestNoAcceptedConnectionIsLost(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	e := startEnding(t, filepath.Join(t.TempDir(), "crio.sock"), forward.Options{})
	early, err := net.Dial("unix", e.socket)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = early.Close() }()
	// Connections are accepted in order: one that is answered comes after early.
	g.Expect(get(t, clientOf(t, e.socket), "/info").code).To(Equal(http.StatusServiceUnavailable))
	e.end(handover.ErrTaken)
	_, err = io.WriteString(early, http2.ClientPreface)
	g.Expect(err).NotTo(HaveOccurred())
	framer := http2.NewFramer(early, early)
	g.Expect(framer.WriteSettings()).To(Succeed())
	g.Expect(early.SetReadDeadline(time.Now().Add(10 * time.Second))).To(Succeed())
	g.Eventually(func() (http2.FrameType, error) {
		frame, err := framer.ReadFrame()
		if err != nil {
			return 0, err
		}
		return frame.Header().Type, nil
	}).Should(Equal(http2.FrameGoAway))
	g.Expect(early.Close()).To(Succeed())
	g.Eventually(e.done, "10s").Should(Receive(Succeed()))
}

func clientOf(t *testing.T, socket string) *http.Client {
	t.Helper()
	client, _ := webClient(t, socket)
	return client
}
