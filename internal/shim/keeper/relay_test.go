package keeper

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// slow is a task service whose Wait never returns and which knows what it was asked.
type slow struct {
	taskapi.TaskService
	mu     sync.Mutex
	waits  int
	states int
}

func (s *slow) Wait(ctx context.Context, _ *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	s.mu.Lock()
	s.waits++
	s.mu.Unlock()
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s *slow) State(_ context.Context, req *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states++
	return &taskapi.StateResponse{ID: req.ID, Bundle: strings.Repeat("x", 1<<20)}, nil
}

func (s *slow) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waits
}

// serve serves a task service on a socket; stop cuts all its connections, as a
// killed process does.
func serve(t *testing.T, path string, svc taskapi.TaskService) (stop func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	taskapi.RegisterTaskService(server, svc)
	go func() { _ = server.Serve(context.WithoutCancel(t.Context()), l) }()
	stop = sync.OnceFunc(func() { _ = server.Close() })
	t.Cleanup(stop)
	return stop
}

type rig struct {
	pod    pod.Pod
	client taskapi.TaskService
	dead   chan struct{}
	// stop kills the service, if there is one.
	stop func()
}

// newRig starts a task service, unless it is nil, and a relay in front of it, and
// connects to the relay.
func newRig(t *testing.T, svc taskapi.TaskService) rig {
	t.Helper()
	p, err := pod.New(t.TempDir(), "p")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Create(); err != nil {
		t.Fatal(err)
	}
	stop := func() {}
	if svc != nil {
		stop = serve(t, p.TaskSocket(), svc)
	}
	dead := make(chan struct{})
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", p.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := Relay{Dial: func(ctx context.Context) (net.Conn, error) { return Dial(ctx, p) }, Dead: dead}
	go func() { _ = r.Serve(context.WithoutCancel(t.Context()), l) }()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", p.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return rig{p, taskapi.NewTaskClient(ttrpc.NewClient(conn)), dead, stop}
}

func TestRelayPassesOn(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newRig(t, &slow{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			resp, err := r.client.State(t.Context(), &taskapi.StateRequest{ID: "c1"})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(resp.Bundle).To(HaveLen(1 << 20))
		})
	}
	wg.Wait()
}

func TestConnectionsOutliveTheService(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	first := &slow{}
	r := newRig(t, first)
	g.Expect(r.pod.Put(pod.Record{ID: "c1", Bundle: "/b", Stdout: "/fifo"})).To(Succeed())

	waited := make(chan uint32, 3)
	for range 3 {
		go func() {
			resp, err := r.client.Wait(t.Context(), &taskapi.WaitRequest{ID: "c1"})
			g.Expect(err).NotTo(HaveOccurred())
			waited <- resp.ExitStatus
		}()
	}
	g.Eventually(first.waiting, 5*time.Second).Should(Equal(3))
	r.stop()
	g.Consistently(waited, "50ms").ShouldNot(Receive())

	empty := make(chan struct{})
	after := &afterlife{pod: r.pod, died: time.Now(), empty: sync.OnceFunc(func() { close(empty) })}
	serve(t, r.pod.TaskSocket(), after)
	close(r.dead)
	for range 3 {
		g.Eventually(waited, 5*time.Second).Should(Receive(Equal(uint32(pod.KilledStatus))))
	}

	// On the same connection, what CRI-O does to stop and remove a container.
	ctx := t.Context()
	state, err := r.client.State(ctx, &taskapi.StateRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(state.Stdout).To(Equal("/fifo"))
	_, err = r.client.Kill(ctx, &taskapi.KillRequest{ID: "c1", Signal: 15})
	g.Expect(err).NotTo(HaveOccurred())
	_, err = r.client.Kill(ctx, &taskapi.KillRequest{ID: "c1"})
	g.Expect(status.Code(err)).To(Equal(codes.NotFound), "it does not live")
	_, err = r.client.Exec(ctx, &taskapi.ExecProcessRequest{ID: "c1", ExecID: "e"})
	g.Expect(status.Code(err)).To(Equal(codes.FailedPrecondition))
	_, err = r.client.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(empty).NotTo(BeClosed())
	for range 2 {
		_, err = r.client.Delete(ctx, &taskapi.DeleteRequest{ID: "c1"})
		g.Expect(err).NotTo(HaveOccurred())
	}
	_, err = r.client.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(empty).To(BeClosed())
}

func TestAfterlifeKeepsEarlierExits(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newRig(t, nil)
	exited := time.Now().Add(-time.Hour)
	g.Expect(r.pod.Put(pod.Record{ID: "init"}.Exited(exited, 0))).To(Succeed())
	a := &afterlife{pod: r.pod, died: time.Now()}
	resp, err := a.Wait(t.Context(), &taskapi.WaitRequest{ID: "init"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.ExitStatus).To(BeZero())
	g.Expect(resp.ExitedAt.AsTime()).To(BeTemporally("~", exited, time.Millisecond))
	_, err = a.State(t.Context(), &taskapi.StateRequest{ID: "unknown"})
	g.Expect(status.Code(err)).To(Equal(codes.NotFound))
	_, err = a.State(t.Context(), &taskapi.StateRequest{ID: "../../etc/passwd"})
	g.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
}

func TestHostileFrames(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	header := make([]byte, headerSize)
	binary.BigEndian.PutUint32(header, 1<<31)
	_, err := readFrame(strings.NewReader(string(header)))
	g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue())
	binary.BigEndian.PutUint32(header, 4)
	_, err = readFrame(strings.NewReader(string(header) + "abc"))
	g.Expect(err).To(HaveOccurred())

	// A client that sends one loses its connection, and only that.
	r := newRig(t, &slow{})
	bad, err := (&net.Dialer{}).DialContext(t.Context(), "unix", r.pod.Socket())
	g.Expect(err).NotTo(HaveOccurred())
	binary.BigEndian.PutUint32(header, 1<<31)
	_, err = bad.Write(header)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(bad.SetReadDeadline(time.Now().Add(5 * time.Second))).To(Succeed())
	_, err = bad.Read(make([]byte, 1))
	g.Expect(err).To(MatchError("EOF"))
	_, err = r.client.State(t.Context(), &taskapi.StateRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
}

// A CRI-O that restarts while the keeper takes over connects anew.
func TestNewConnectionsWaitForTheSuccessor(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(p pod.Pod) error{
		"nobody listens": func(p pod.Pod) error { // as a killed shim leaves it
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.TaskSocket(), Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return l.Close()
		},
		"no socket": func(pod.Pod) error { return nil }, // the moment before the successor has its own
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := newRig(t, nil)
			g.Expect(leave(r.pod)).To(Succeed())
			g.Expect(r.pod.Put(pod.Record{ID: "c1", Stdout: "/fifo"})).To(Succeed())
			answered := make(chan error, 3)
			for range 3 {
				go func() {
					resp, err := r.client.State(context.WithoutCancel(t.Context()), &taskapi.StateRequest{ID: "c1"})
					g.Expect(resp.GetStdout()).To(Equal("/fifo"))
					answered <- err
				}()
			}
			g.Consistently(answered, "100ms").ShouldNot(Receive())
			if err := os.Remove(r.pod.TaskSocket()); !errors.Is(err, fs.ErrNotExist) {
				g.Expect(err).NotTo(HaveOccurred())
			}
			serve(t, r.pod.TaskSocket(), &afterlife{pod: r.pod, died: time.Now()})
			close(r.dead)
			for range 3 {
				g.Eventually(answered, 5*time.Second).Should(Receive(BeNil()))
			}
		})
	}
}

func TestAWaitForASuccessorEnds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		refused error
		// mortal is set where a successor may come; leave, where the client does not wait.
		mortal, leave bool
		want          time.Duration
	}{
		"none comes":               {unix.ECONNREFUSED, true, false, successorWait},
		"the client leaves":        {unix.ECONNREFUSED, true, true, time.Second},
		"none can come":            {unix.ECONNREFUSED, false, false, 0},
		"the service only is busy": {unix.EAGAIN, true, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := NewWithT(t)
				client, end := net.Pipe()
				relay := Relay{Dial: func(context.Context) (net.Conn, error) {
					return nil, &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", tc.refused)}
				}}
				if tc.mortal {
					relay.Dead = make(chan struct{})
				}
				if tc.leave {
					time.AfterFunc(time.Second, func() { _ = client.Close() })
				}
				began := time.Now()
				err := relay.relay(t.Context(), end)
				g.Expect(time.Since(began)).To(Equal(tc.want))
				if tc.leave {
					g.Expect(err).NotTo(HaveOccurred())
				} else {
					g.Expect(err).To(MatchError(tc.refused))
				}
				_, err = client.Write([]byte("x"))
				g.Expect(err).To(MatchError(io.ErrClosedPipe), "the client's connection is closed")
				synctest.Wait()
			})
		})
	}
}

// A successor that comes when the client has left is let go at once: nobody would close
// the connection to it.
func TestNoSuccessorForAClientThatLeft(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	l := &link{open: map[uint32]frame{}}
	l.close()
	service, end := net.Pipe()
	g.Expect(l.succeed(end)).To(MatchError(errLeft))
	_, err := service.Read(make([]byte, 1))
	g.Expect(err).To(MatchError(io.EOF))
}
