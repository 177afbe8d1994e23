package front

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front/forward"
	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	report "github.com/husk-cri/husk/status"
)

// Server is the front.
type Server struct {
	Collaborators
	live    atomic.Pointer[live]
	backend *forward.Backend
	methods map[string]func(*call) error
	unary   map[string]bool // methods that are passed on as one message each way
}

// New returns a front for the CRI-O at config.Backend, which need not listen yet.
func New(config Config, with Collaborators) (*Server, error) {
	if with.Observer == nil {
		with.Observer = unobserved{}
	}
	s := &Server{Collaborators: with, unary: map[string]bool{}}
	s.live.Store(newLive(config, nil))
	s.methods = s.intercepts()
	// Known to be one message each way, these need no stream: half the wake-ups.
	for _, service := range services() {
		for _, m := range service.Methods {
			s.unary[fullName(service, m.MethodName)] = true
		}
	}
	backend, err := forward.NewBackend(config.Backend, forward.Options{
		MaxSendBytes: config.MaxSendBytes, MaxRecvBytes: config.MaxRecvBytes, EditHTTP: s.editHTTP,
	})
	if err != nil {
		return nil, err
	}
	s.backend = backend
	return s, nil
}

// Reconfigure makes calls that begin from now on follow config. Backend, MaxSendBytes
// and MaxRecvBytes stay what they were: they need a new Server. With another MaxPulls,
// pulls that are under way or waiting do not count against it.
func (s *Server) Reconfigure(config Config) { s.live.Store(newLive(config, s.live.Load())) }

// Close gives up the connection to CRI-O.
func (s *Server) Close() error { return s.backend.Close() }

// Serve answers CRI clients on the listener until ctx is done, and closes it.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	return s.backend.Serve(ctx, listener, s.handle, s.Log)
}

// intercepts lists the methods the front has an opinion on: those that pull,
// use, show or remove images, those that report containers, the one that makes
// the pods whose handler is asked for later, and Husk's own. All others,
// including ones that do not exist yet, are forwarded.
func (s *Server) intercepts() map[string]func(*call) error {
	return map[string]func(*call) error{
		cri.ImageService_PullImage_FullMethodName:            s.pullImage,
		cri.ImageService_ImageStatus_FullMethodName:          s.imageStatus,
		cri.ImageService_ListImages_FullMethodName:           s.listImages,
		cri.ImageService_StreamImages_FullMethodName:         s.streamImages,
		cri.ImageService_RemoveImage_FullMethodName:          s.removeImage,
		cri.RuntimeService_RunPodSandbox_FullMethodName:      s.runPodSandbox,
		cri.RuntimeService_CreateContainer_FullMethodName:    s.createContainer,
		cri.RuntimeService_RestorePod_FullMethodName:         s.restorePod,
		cri.RuntimeService_ContainerStatus_FullMethodName:    s.reportOne(report.EditContainerStatus),
		cri.RuntimeService_PodSandboxStatus_FullMethodName:   s.reportOne(report.EditPodSandboxStatus),
		cri.RuntimeService_ListContainers_FullMethodName:     s.listContainers,
		cri.RuntimeService_StreamContainers_FullMethodName:   s.reportMany(report.EditContainers),
		cri.RuntimeService_GetContainerEvents_FullMethodName: s.reportMany(report.EditContainerEvent),
		huskv1.ImageService_ResolveImage_FullMethodName:      s.resolveImage,
	}
}

// handle answers one call of any method, known or not.
func (s *Server) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	start := time.Now()
	answer, ok := s.methods[method]
	if !ok {
		var err error
		if s.unary[method] {
			err = s.passOn(stream, method)
		} else {
			err = s.backend.Forward(stream)
		}
		s.forwarded(stream.Context(), method, time.Since(start), err)
		return err
	}
	end := func(error) {}
	if s.Tracer != nil {
		stream, end = s.Tracer.Trace(stream, method)
	}
	c := &call{backend: s.backend, stream: stream, method: method}
	err := c.receive()
	if err == nil {
		err = answer(c)
	}
	told := errdefs.ToGRPC(err)
	if c.passed {
		s.Observer.Forwarded(method, status.Code(told))
	}
	s.logCall(c, time.Since(start), err)
	end(err)
	return told
}

// passOn forwards the one request and the one answer of a call as they are.
func (s *Server) passOn(stream grpc.ServerStream, method string) error {
	request := new(forward.Frame)
	if err := stream.RecvMsg(request); err != nil {
		return errdefs.ToGRPC(err) // a bare EOF would be code Unknown
	}
	answer, err := s.backend.Relay(stream, method, request.Bytes())
	if err != nil {
		return errdefs.ToGRPC(err)
	}
	return errdefs.ToGRPC(stream.SendMsg(answer))
}

// editHTTP makes CRI-O's answer to GET /containers/<id> true.
func (s *Server) editHTTP(ctx context.Context, _ string, body []byte) ([]byte, error) {
	return report.EditContainerInfo(body, s.origins(ctx))
}
