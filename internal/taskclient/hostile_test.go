package taskclient

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// answerOf is a frame with a payload.
func answerOf(size uint32, stream uint32, kind byte, payload []byte) []byte {
	frame := binary.BigEndian.AppendUint32(nil, size)
	frame = binary.BigEndian.AppendUint32(frame, stream)
	return append(append(frame, kind, 0), payload...)
}

// each handles each connection of a listener after its request was read.
func each(l net.Listener, handle func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			var header [headerSize]byte
			if _, err := io.ReadFull(conn, header[:]); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(header[:]))); err == nil {
				handle(conn)
			}
		}()
	}
}

func TestHostileServers(t *testing.T) {
	t.Parallel()
	good, err := proto.Marshal(&ttrpc.Response{Payload: []byte{0xff, 0xff}})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	flood := strings.Repeat("\x00", 1<<20)
	for name, tc := range map[string]struct {
		answer []byte
		kind   errdefs.Kind
		text   string
	}{
		"ends at once":                {nil, errdefs.Unavailable, "ended without an answer"},
		"ends in a header":            {[]byte{0, 0}, errdefs.Unavailable, "ended without an answer"},
		"ends in a message":           {answerOf(100, 1, typeResponse, []byte("x")), errdefs.Unavailable, "ended without an answer"},
		"speaks HTTP":                 {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), errdefs.Internal, "its answer has"},
		"promises gigabytes":          {answerOf(1<<32-1, 1, typeResponse, []byte(flood)), errdefs.Internal, "more than 1048576"},
		"answers what nobody asked":   {answerOf(0, 3, typeResponse, nil), errdefs.Internal, "for call 3"},
		"asks":                        {answerOf(0, 1, typeRequest, nil), errdefs.Internal, "of type 1"},
		"streams":                     {answerOf(0, 1, 3, nil), errdefs.Internal, "of type 3"},
		"answers with garbage":        {answerOf(4, 1, typeResponse, []byte{0xff, 0xff, 0xff, 0xff}), errdefs.Internal, "is not ttrpc's"},
		"has garbage for an answer":   {answerOf(uint32(len(good)), 1, typeResponse, good), errdefs.Internal, "is none of State"},
		"answers, and goes on and on": {append(answerOf(0, 1, typeResponse, nil), flood...), errdefs.Internal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			l, shim := listen(t)
			go each(l, func(conn net.Conn) { _, _ = conn.Write(tc.answer) })
			state, err := shim.State(t.Context(), "c")
			if tc.text == "" { // what comes after an answer is nobody's business
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(state.Status).To(Equal(StatusUnknown))
				return
			}
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind))
		})
	}
}

// A server that accepts, or not even that, and says nothing.
func TestSilentServers(t *testing.T) {
	t.Parallel()
	big := ExecRequest{ID: "c", ExecID: "e", Process: &rspec.Process{Env: []string{strings.Repeat("x", 3<<20)}}}
	calls := map[string]func(ctx context.Context, s *Shim) error{
		"create": func(ctx context.Context, s *Shim) error {
			_, err := s.Create(ctx, CreateRequest{ID: "c"})
			return err
		},
		"wait": func(ctx context.Context, s *Shim) error {
			_, err := s.Wait(ctx, "c", "")
			return err
		},
		"a request that it does not read": func(ctx context.Context, s *Shim) error { return s.Exec(ctx, big) },
		"shutdown":                        func(ctx context.Context, s *Shim) error { return s.Shutdown(ctx, "c") },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, shim := listen(t)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			g.Expect(errdefs.KindOf(call(ctx, shim))).To(Equal(errdefs.DeadlineExceeded))
			ctx, cancel = context.WithCancel(t.Context())
			cancel()
			g.Expect(errdefs.KindOf(call(ctx, shim))).To(Equal(errdefs.Canceled))
		})
	}
	t.Run("the bound of its own", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		_, shim := listen(t)
		req, resp := &taskapi.ShutdownRequest{}, &taskapi.StateResponse{}
		err := shim.call(t.Context(), call{op: "look at it", method: "State", req: req, resp: resp, limit: 50 * time.Millisecond})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
		g.Expect(err).To(MatchError(ContainSubstring("no answer within 50ms")))
		g.Expect(isGone(err)).To(BeFalse(), "it is there: a Shutdown has not succeeded")
	})
}

// A shim that dies in the middle of any call ends it, and a Shutdown is done by that.
func TestServerDiesInACall(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	l, shim := listen(t)
	go each(l, func(net.Conn) {})
	_, err := shim.Wait(t.Context(), "c", "")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	_, err = shim.Create(t.Context(), CreateRequest{ID: "c"})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	g.Expect(shim.Shutdown(t.Context(), "c")).To(Succeed())
	g.Expect(l.Close()).To(Succeed())
	_, err = shim.Delete(t.Context(), "c", "")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	g.Expect(shim.Shutdown(t.Context(), "c")).To(Succeed())
}

// Calls leave nothing behind in the caller, however they end. Not parallel: it counts.
func TestCallsLeaveNothing(t *testing.T) {
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = l.Close() }() // the queue of who is not accepted is long enough
	shim, err := Dial(t.Context(), "unix://"+path)
	g.Expect(err).NotTo(HaveOccurred())
	before := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := shim.Wait(ctx, "c", "")
		cancel()
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	}
	g.Eventually(runtime.NumGoroutine, 5*time.Second).Should(BeNumerically("<=", before))
}

// A question that is cut off is asked again, while somebody listens: by then Husk's keeper
// may answer for a dead shim.
func TestQuestionsAreAskedAgain(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	answer, err := proto.Marshal(&taskapi.WaitResponse{ExitStatus: 137})
	g.Expect(err).NotTo(HaveOccurred())
	answer, err = proto.Marshal(&ttrpc.Response{Payload: answer})
	g.Expect(err).NotTo(HaveOccurred())
	l, shim := listen(t)
	shim.redo = time.Minute
	cuts := make(chan struct{}, 2)
	go each(l, func(conn net.Conn) {
		select {
		case cuts <- struct{}{}:
		default:
			_, _ = conn.Write(answerOf(uint32(len(answer)), 1, typeResponse, answer))
		}
	})
	g.Expect(shim.Wait(t.Context(), "c", "")).To(HaveField("Code", 137))
	g.Expect(cuts).To(HaveLen(2))

	// What has an effect is not done twice.
	<-cuts
	_, err = shim.Start(t.Context(), "c", "")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	g.Expect(cuts).To(HaveLen(2))
}

func TestDial(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		address string
		kind    errdefs.Kind
	}{
		"nobody":   {"unix://" + filepath.Join(dir, "none"), errdefs.Unavailable},
		"TCP":      {"tcp://127.0.0.1:1", errdefs.Unsupported},
		"abstract": {"/run/abstract", errdefs.Unsupported},
		"vsock":    {"vsock://2:1024", errdefs.Unsupported},
		"nothing":  {"", errdefs.Unsupported},
		"relative": {"unix://a", errdefs.Internal},
		"long":     {"unix:///" + strings.Repeat("a", 200), errdefs.Internal},
		"lines":    {"unix:///a\nb", errdefs.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Dial(t.Context(), tc.address)
			g := NewWithT(t)
			g.Expect(err).To(HaveOccurred())
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
		})
	}
}
