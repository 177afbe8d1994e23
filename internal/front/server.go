package front

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front/forward"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/status"
)

// Server is the front.
type Server struct {
	Collaborators
	config  Config
	backend *forward.Backend
	methods map[string]func(*call) error
	pulls   chan struct{} // one slot per pull under way
}

// New returns a front for the CRI-O at config.Backend, which need not listen yet.
func New(config Config, with Collaborators) (*Server, error) {
	if config.MaxPulls <= 0 {
		config.MaxPulls = defaultMaxPulls
	}
	if config.PullTimeout <= 0 {
		config.PullTimeout = defaultPullTimeout
	}
	backend, err := forward.NewBackend(config.Backend, forward.Options{MaxMessageBytes: config.MaxMessageBytes})
	if err != nil {
		return nil, err
	}
	s := &Server{Collaborators: with, config: config, backend: backend, pulls: make(chan struct{}, config.MaxPulls)}
	s.methods = s.intercepts()
	// Known to be one message each way, these need no stream: half the wake-ups.
	for _, service := range []grpc.ServiceDesc{cri.RuntimeService_ServiceDesc, cri.ImageService_ServiceDesc} {
		for _, m := range service.Methods {
			full := "/" + service.ServiceName + "/" + m.MethodName
			if _, ok := s.methods[full]; !ok {
				s.methods[full] = (*call).passOn
			}
		}
	}
	return s, nil
}

// Close gives up the connection to CRI-O.
func (s *Server) Close() error { return s.backend.Close() }

// Serve answers CRI clients on the listener until ctx is done, and closes it.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	return s.backend.Serve(ctx, listener, s.handle, s.Log)
}

// intercepts lists the methods the front has an opinion on: those that pull,
// use, show or remove images, those that report containers, and the one that makes
// the pods whose handler is asked for later. All others,
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
		cri.RuntimeService_ContainerStatus_FullMethodName:    s.reportOne(status.EditContainerStatus),
		cri.RuntimeService_PodSandboxStatus_FullMethodName:   s.reportOne(status.EditPodSandboxStatus),
		cri.RuntimeService_ListContainers_FullMethodName:     s.listContainers,
		cri.RuntimeService_StreamContainers_FullMethodName:   s.reportMany(editContainers),
		cri.RuntimeService_GetContainerEvents_FullMethodName: s.reportMany(status.EditContainerEvent),
	}
}

// handle answers one call of any method, known or not.
func (s *Server) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	answer, ok := s.methods[method]
	if !ok {
		return s.backend.Forward(stream)
	}
	request := new(forward.Frame)
	if err := stream.RecvMsg(request); err != nil {
		return errdefs.ToGRPC(err) // a bare EOF would be code Unknown
	}
	return errdefs.ToGRPC(answer(&call{backend: s.backend, stream: stream, method: method, request: request.Bytes()}))
}

// call is one intercepted call with its encoded request.
type call struct {
	backend *forward.Backend
	stream  grpc.ServerStream
	method  string
	request []byte
}

func (c *call) ctx() context.Context { return c.stream.Context() }

// decode reads the request. Fields this version of cri-api does not know are
// kept in m and encoded again.
func (c *call) decode(m proto.Message) error {
	if err := proto.Unmarshal(c.request, m); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "decode "+c.method, err)
	}
	return nil
}

// relay sends an encoded request to CRI-O on behalf of the client.
func (c *call) relay(request []byte) ([]byte, error) {
	answer, err := c.backend.Relay(c.stream, c.method, request)
	if err != nil {
		return nil, err
	}
	return answer.Bytes(), nil
}

// passOn forwards the request and the answer as they are.
func (c *call) passOn() error {
	answer, err := c.backend.Relay(c.stream, c.method, c.request)
	if err != nil {
		return err
	}
	return c.stream.SendMsg(answer)
}

func (c *call) send(answer []byte) error { return c.stream.SendMsg(forward.NewFrame(answer)) }

// answer sends m.
func (c *call) answer(m proto.Message) error {
	encoded, err := proto.Marshal(m)
	if err != nil {
		return errdefs.New(errdefs.Internal, "encode the answer to "+c.method, err)
	}
	return c.send(encoded)
}

// askImage returns the image that CRI-O has by the name; nil when it has none.
func (s *Server) askImage(ctx context.Context, name string) (*cri.Image, error) {
	answer := new(cri.ImageStatusResponse)
	request := &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}}
	if err := s.ask(ctx, cri.ImageService_ImageStatus_FullMethodName, request, answer); err != nil {
		return nil, err
	}
	return answer.GetImage(), nil
}

// ordinaryImage is askImage for an image with layers: nil when what CRI-O has by the
// name is a record.
func (s *Server) ordinaryImage(ctx context.Context, name string) (*cri.Image, error) {
	image, err := s.askImage(ctx, name)
	if err != nil || image == nil {
		return nil, err
	}
	rec, err := s.recordByStorageID(ctx, image.GetId())
	if err != nil || rec != nil {
		return nil, err
	}
	return image, nil
}

// ask makes a call of the front's own to CRI-O, within the deadline of ctx.
func (s *Server) ask(ctx context.Context, method string, request, answer proto.Message) error {
	encoded, err := proto.Marshal(request)
	if err != nil {
		return errdefs.New(errdefs.Internal, "encode "+method, err)
	}
	reply, err := s.backend.Call(ctx, method, encoded)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(reply, answer); err != nil {
		return errdefs.New(errdefs.Internal, "decode CRI-O's answer to "+method, err)
	}
	return nil
}
