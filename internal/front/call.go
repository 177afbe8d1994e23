package front

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front/forward"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// call is one intercepted call with its encoded request.
type call struct {
	backend *forward.Backend
	stream  grpc.ServerStream
	method  string
	request []byte
	passed  bool // the client's call went to CRI-O
	entry        // what the log says of it
}

func (c *call) ctx() context.Context { return c.stream.Context() }

// receive takes the request from the client.
func (c *call) receive() error {
	request := new(forward.Frame)
	if err := c.stream.RecvMsg(request); err != nil {
		return err
	}
	c.request = request.Bytes()
	return nil
}

// decode reads the request. Fields this version of cri-api does not know are
// kept in m and encoded again.
func (c *call) decode(m proto.Message) error {
	if err := proto.Unmarshal(c.request, m); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "decode "+c.method, err)
	}
	return nil
}

// forward sends an encoded request to CRI-O on behalf of the client. The answer has
// not been copied.
func (c *call) forward(request []byte) (*forward.Frame, error) {
	c.passed = true
	return c.backend.Relay(c.stream, c.method, request)
}

// relay is forward for an answer that is looked at.
func (c *call) relay(request []byte) ([]byte, error) {
	answer, err := c.forward(request)
	if err != nil {
		return nil, err
	}
	return answer.Bytes(), nil
}

// passOn forwards the request and the answer as they are.
func (c *call) passOn() error {
	answer, err := c.forward(c.request)
	if err != nil {
		return err
	}
	return c.stream.SendMsg(answer)
}

// edited passes a server-streaming call on and every answer through edit.
func (c *call) edited(edit forward.Edit) error {
	c.passed = true
	return c.backend.ForwardEdited(c.stream, c.request, edit)
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
	answer, err := s.askStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	return answer.GetImage(), err
}

func (s *Server) askStatus(ctx context.Context, request *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if id := imageref.NewQuery(request.GetImage().GetImage(), nil).ID; !id.IsZero() {
		request.Image.Image = id.String() // CRI-O takes sha256:ID for the name of a repository
	}
	answer := new(cri.ImageStatusResponse)
	err := s.ask(ctx, cri.ImageService_ImageStatus_FullMethodName, request, answer)
	if err != nil && !s.noSuchID(ctx, request.GetImage().GetImage(), err) {
		return nil, err
	}
	return answer, nil
}

// noSuchID reports whether err, CRI-O's answer to an ImageStatus, says no more than that
// no image has the ID, or the prefix of one, that name is. CRI-O then takes it for a short
// name, and fails where registries.conf gives that no meaning.
func (s *Server) noSuchID(ctx context.Context, name string, err error) bool {
	if q := imageref.NewQuery(name, nil); grpcstatus.Code(err) != codes.Unknown || (q.ID.IsZero() && !q.IsIDPrefix()) {
		return false
	}
	_, meaningless := s.Names.Resolve(ctx, name)
	return meaningless != nil
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

// query parses an image name of a request.
func (s *Server) query(ctx context.Context, name string) (imageref.Query, error) {
	q := imageref.NewQuery(name, nil)
	if !q.ID.IsZero() {
		return q, nil
	}
	candidates, err := s.Names.Resolve(ctx, name)
	if err != nil && !q.IsIDPrefix() {
		return imageref.Query{}, err
	}
	return imageref.NewQuery(name, candidates), nil
}

// find returns the records that name stands for by the rules of among: those of what a
// client is shown, imageref.Resolve, or imageref.ResolveStored, for which a storage ID is
// a name too.
func (s *Server) find(ctx context.Context, name string, among func([]imageref.Record, imageref.Query) imageref.Match) (imageref.Match, error) {
	q, err := s.query(ctx, name)
	if err != nil {
		return imageref.Match{}, err
	}
	records, err := s.Records.List(ctx)
	if err != nil {
		return imageref.Match{}, err
	}
	return among(records, q), nil
}

// recordByStorageID returns the record that is stored under the name; nil when
// there is none, or name is no storage ID.
func (s *Server) recordByStorageID(ctx context.Context, name string) (*imageref.Record, error) {
	if id, err := imageref.ParseStorageID(name); err == nil {
		rec, err := s.Records.Get(ctx, id)
		if err == nil {
			return &rec, nil
		}
		if !errdefs.Is(err, errdefs.NotFound) {
			return nil, err
		}
	}
	return nil, nil
}
