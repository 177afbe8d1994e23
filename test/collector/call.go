package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1" // its methods are looked up by name

	_ "github.com/husk-cri/husk/pkg/api/husk/v1" // as are these
)

// maxMessage is CRI-O's limit of one message.
const maxMessage = 80 << 20

// callOptions say how to make a call.
type callOptions struct {
	socket, traceparent string
	timeout             time.Duration
}

// shape makes the messages of a method. One that no .proto has is sent nothing, and
// its answer is not looked at.
func shape(method string) (request, answer func() proto.Message) {
	service, name, _ := strings.Cut(method, "/")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	described, ok := found.(protoreflect.MethodDescriptor)
	if err != nil || !ok {
		empty := func() proto.Message { return new(emptypb.Empty) }
		return empty, empty
	}
	return func() proto.Message { return dynamicpb.NewMessage(described.Input()) },
		func() proto.Message { return dynamicpb.NewMessage(described.Output()) }
}

// call makes one call of any kind and prints each answer on a line, as it comes. The
// error of the call is "CODE: message".
func (o callOptions) call(ctx context.Context, method string, in io.Reader, out io.Writer) (err error) {
	newRequest, newAnswer := shape(method)
	request := newRequest()
	body, err := io.ReadAll(io.LimitReader(in, maxMessage))
	if err != nil {
		return err
	}
	if len(body) > 0 {
		if err := protojson.Unmarshal(body, request); err != nil {
			return fmt.Errorf("read the request: %w", err)
		}
	}
	conn, err := grpc.NewClient("unix:"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if o.traceparent != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", o.traceparent)
	}
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	// A unary call is a stream of one message to gRPC.
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+method)
	if err != nil {
		return told(err)
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) { // RecvMsg has the reason of an EOF
		return told(err)
	}
	if err := stream.CloseSend(); err != nil {
		return told(err)
	}
	return printAnswers(stream, newAnswer, out)
}

func printAnswers(stream grpc.ClientStream, newAnswer func() proto.Message, out io.Writer) error {
	for {
		answer := newAnswer()
		if err := stream.RecvMsg(answer); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return told(err)
		}
		text, err := protojson.Marshal(answer)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, string(text)); err != nil {
			return err
		}
	}
}

// told is the error of a call as a test reads it. Being interrupted is none.
func told(err error) error {
	if status.Code(err) == codes.Canceled {
		return nil
	}
	return fmt.Errorf("%s: %s", status.Code(err), status.Convert(err).Message())
}
