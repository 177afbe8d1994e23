package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// kindOf returns what an error says in its details.
func kindOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if k, ok := d.(*shimv1.Kind); ok {
			return k.Kind
		}
	}
	return ""
}

func TestImageError(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(ImageError(nil)).To(Succeed())
	for _, kind := range errdefs.Kinds() {
		err := ImageError(fmt.Errorf("outer: %w", errdefs.New(kind, "pull r/a", errors.New("100%"))))
		g.Expect(status.Code(err)).To(Equal(kind.Code()))
		g.Expect(kindOf(err)).To(Equal(kind.String()))
		g.Expect(status.Convert(err).Message()).To(HaveSuffix("outer: pull r/a: 100%"))
	}
	g.Expect(kindOf(ImageError(errors.New("?")))).To(Equal("internal"))
}

// pulling is an image service whose PullImage reports once and then hangs.
type pulling struct{ lostImages }

func (pulling) PullImage(ctx context.Context, _ *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
	if err := stream.Send(&shimv1.PullImageResponse{Progress: &shimv1.Progress{Layers: 3}}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// cutter is a listener whose connections can be cut, as those of a killed process are:
// ttrpc's own Close leaves those with an open stream alone.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.conns = append(c.conns, conn)
	}
	return conn, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.Close()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

// serveImages serves an image service on a socket; stop cuts all its connections.
func serveImages(t *testing.T, path string, svc shimv1.ImagesService) (stop func()) {
	t.Helper()
	plain, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := &cutter{Listener: plain}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	shimv1.RegisterImagesService(server, svc)
	go func() { _ = server.Serve(context.WithoutCancel(t.Context()), l) }()
	t.Cleanup(l.cut)
	return l.cut
}

// A pull that is open when the shim is killed ends with a clear error.
func TestAPullEndsWithTheShim(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newRig(t, nil)
	stop := serveImages(t, r.pod.TaskSocket(), pulling{})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", r.pod.Socket())
	g.Expect(err).NotTo(HaveOccurred())
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	images := shimv1.NewImagesClient(client)
	stream, err := images.PullImage(t.Context(), &shimv1.PullImageRequest{Reference: "r/a@sha256:1"})
	g.Expect(err).NotTo(HaveOccurred())
	resp, err := stream.Recv()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.Progress.Layers).To(Equal(uint32(3)))

	done := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		done <- err
	}()
	stop()
	g.Consistently(done, "50ms").ShouldNot(Receive())
	serveImages(t, r.pod.TaskSocket(), lostImages{r.pod.ID()})
	close(r.dead)
	g.Eventually(done, 5*time.Second).Should(Receive(&err))
	g.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	g.Expect(kindOf(err)).To(Equal("unavailable"))
	g.Expect(err).To(MatchError(And(ContainSubstring("r/a@sha256:1"), ContainSubstring("was killed"))))

	for _, call := range []func() error{
		func() error { _, err := images.ListImages(t.Context(), &shimv1.ListImagesRequest{}); return err },
		func() error { _, err := images.RemoveImage(t.Context(), &shimv1.RemoveImageRequest{}); return err },
		func() error { _, err := images.ImageStatus(t.Context(), &shimv1.ImageStatusRequest{}); return err },
	} {
		g.Expect(kindOf(call())).To(Equal("unavailable"))
	}
}

// ttrpc's server has a panic for a message to a stream that is not open, or that belongs
// to a call without a stream: it must not get one.
func TestStreamsFromClientsDoNotReachTheShim(t *testing.T) {
	t.Parallel()
	for name, streamID := range map[string]uint32{"no stream": 77, "a call": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := newRig(t, &slow{})
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", r.pod.Socket())
			g.Expect(err).NotTo(HaveOccurred())
			defer func() { _ = conn.Close() }()
			_, err = conn.Write([]byte{0, 0, 0, 0, 0, 0, 0, byte(streamID), typeData, flagClosed})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(conn.SetReadDeadline(time.Now().Add(5 * time.Second))).To(Succeed())
			_, err = conn.Read(make([]byte, 1))
			g.Expect(err).To(MatchError("EOF"), "the connection ends")
		})
	}
}
