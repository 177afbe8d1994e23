package forward

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	spb "google.golang.org/genproto/googleapis/rpc/status"
)

// explain tells Unavailable of gRPC itself, for want of a CRI-O, from CRI-O's own:
// the first names the socket, so that whoever reads kubelet's log knows who is
// missing. Every answer of a gRPC server has a content type, in its header or, if
// that is all there is, in its trailer.
func (b *Backend) explain(err error, header, trailer metadata.MD) error {
	if status.Code(err) != codes.Unavailable {
		return err
	}
	answered := len(header.Get("content-type")) > 0 || len(trailer.Get("content-type")) > 0
	if answered && b.conn.GetState() == connectivity.Ready {
		return err
	}
	told, ok := proto.Clone(status.Convert(err).Proto()).(*spb.Status)
	if !ok {
		return err
	}
	told.Message = b.silent() + ": " + told.GetMessage()
	return status.ErrorProto(told)
}

// silent says that CRI-O does not answer, and where it was looked for.
func (b *Backend) silent() string { return "CRI-O does not answer on " + b.socket }
