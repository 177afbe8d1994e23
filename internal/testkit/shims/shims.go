// Package shims has stand-ins for the shims of pods: the image service of husk.shim.v1
// over real ttrpc on the socket where husk looks for it, with what it does in the hands of
// the test.
package shims

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// TB is what a test gives.
type TB interface {
	Helper()
	Fatal(...any)
	Cleanup(func())
	Context() context.Context
}

// Shim answers for one pod. What is nil answers as a shim does that holds what it pulled. The
// fields are set before it is started.
type Shim struct {
	// ID of the sandbox.
	ID string
	// Pull carries PullImage out. Zero: NotFound.
	Pull func(context.Context, *shimv1.PullImageRequest, shimv1.Images_PullImageServer) error
	// List answers ListImages. Zero: with the results of the pulls.
	// Status answers ImageStatus. Zero: nothing is under way.
	List   func(context.Context) (*shimv1.ListImagesResponse, error)
	Status func(context.Context) (*shimv1.ImageStatusResponse, error)
	// Remove answers RemoveImage. Zero: NotFound.
	Remove func(context.Context, string) (uint64, error)

	mu    sync.Mutex
	pulls []*shimv1.PullImageRequest
	held  []*shimv1.Image
}

var _ shimv1.ImagesService = (*Shim)(nil)

// Start serves the shim below the state directory until the test ends, or stop is called.
func (s *Shim) Start(t TB, stateDir string) (stop func()) {
	t.Helper()
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		t.Fatal(err)
	}
	shimv1.RegisterImagesService(server, s)
	return serve(t, Listen(t, stateDir, s.ID), server)
}

// StartOld serves a shim that knows nothing of images.
func StartOld(t TB, stateDir, id string) (stop func()) {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, Listen(t, stateDir, id), server)
}

// Listen makes the socket of a pod, for a test that answers on it as it likes.
func Listen(t TB, stateDir, id string) net.Listener {
	t.Helper()
	p, err := pod.New(stateDir, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Create(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(stateDir, 0o700); err != nil { // as umask 022 would have it
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", p.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func serve(t TB, listener net.Listener, server *ttrpc.Server) (stop func()) {
	ctx := context.WithoutCancel(t.Context())
	go func() { _ = server.Serve(ctx, listener) }() // ends with Close
	stop = func() { _ = server.Close() }
	t.Cleanup(stop)
	return stop
}

// Pulls are the requests that came.
func (s *Shim) Pulls() []*shimv1.PullImageRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*shimv1.PullImageRequest(nil), s.pulls...)
}

// PullImage implements shimv1.ImagesService.
func (s *Shim) PullImage(ctx context.Context, req *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
	s.mu.Lock()
	s.pulls = append(s.pulls, req)
	s.mu.Unlock()
	if s.Pull == nil {
		return Error(errdefs.Newf(errdefs.NotFound, "pull "+req.GetReference(), "no such image"))
	}
	return s.Pull(ctx, req, keeping{stream, s})
}

// keeping is the stream of a pull, whose result the shim then holds.
type keeping struct {
	shimv1.Images_PullImageServer
	shim *Shim
}

// Send implements shimv1.Images_PullImageServer.
func (k keeping) Send(m *shimv1.PullImageResponse) error {
	if m.GetResult() != nil {
		k.shim.mu.Lock()
		k.shim.held = append(k.shim.held, m.GetResult())
		k.shim.mu.Unlock()
	}
	return k.Images_PullImageServer.Send(m)
}

// ListImages implements shimv1.ImagesService.
func (s *Shim) ListImages(ctx context.Context, _ *shimv1.ListImagesRequest) (*shimv1.ListImagesResponse, error) {
	if s.List == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return &shimv1.ListImagesResponse{Images: slices.Clone(s.held)}, nil
	}
	return s.List(ctx)
}

// RemoveImage implements shimv1.ImagesService.
func (s *Shim) RemoveImage(ctx context.Context, req *shimv1.RemoveImageRequest) (*shimv1.RemoveImageResponse, error) {
	if s.Remove == nil {
		return nil, Error(errdefs.Newf(errdefs.NotFound, "remove image "+req.GetImage(), "no such image"))
	}
	freed, err := s.Remove(ctx, req.GetImage())
	return &shimv1.RemoveImageResponse{Freed: freed}, err
}

// ImageStatus implements shimv1.ImagesService.
func (s *Shim) ImageStatus(ctx context.Context, _ *shimv1.ImageStatusRequest) (*shimv1.ImageStatusResponse, error) {
	if s.Status == nil {
		return &shimv1.ImageStatusResponse{SandboxId: s.ID, PodName: "pod-" + s.ID, PodNamespace: "default", PodUid: "uid-" + s.ID}, nil
	}
	return s.Status(ctx)
}

// Error is err as a shim sends it: its code, and its kind beside it.
func Error(err error) error {
	st, _ := status.FromError(errdefs.ToGRPC(err))
	with, detailErr := st.WithDetails(&shimv1.Kind{Kind: errdefs.KindOf(err).String()})
	if detailErr != nil {
		return errors.Join(err, detailErr)
	}
	return with.Err()
}
