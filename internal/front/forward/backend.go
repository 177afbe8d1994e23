// Package forward passes gRPC calls and HTTP connections on to CRI-O without
// understanding them: every method, known or not, unary or streaming, with
// metadata, deadlines, cancellation, codes and details in both directions.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// maxBackoff bounds the pause between attempts to reach CRI-O, so that a node
	// is back within seconds of a CRI-O restart.
	maxBackoff = time.Second
	// connectTimeout bounds one attempt, against a CRI-O that accepts connections
	// and then says nothing.
	connectTimeout = 5 * time.Second
	// receiveWindow is what CRI-O may send ahead on a call, in bytes: a list of a
	// few thousand containers, which would otherwise stop every 64 KiB to ask.
	receiveWindow = 4 << 20
	// pingAfter is how long CRI-O may say nothing on a connection with calls under
	// way before it is asked whether it lives. A call without a deadline would
	// otherwise hang for ever on a CRI-O that was stopped. CRI-O runs with gRPC's
	// defaults, which close a connection that pings more than once in five minutes
	// (too_many_pings) and any that pings without calls.
	pingAfter = 6 * time.Minute
	// pingTimeout is how long the answer may take until the connection counts as dead.
	pingTimeout = 20 * time.Second
	// bufferBytes is the size of each connection's read and write buffer. A list is
	// hundreds of kilobytes; gRPC's default of 32 KiB makes many system calls of it.
	bufferBytes = 128 << 10
)

// Backend is CRI-O behind the front. It connects when it is first needed and
// again whenever the connection is lost; meanwhile calls fail with Unavailable
// and the reason.
type Backend struct {
	socket  string
	conn    *grpc.ClientConn
	options Options
	web     *http.Transport
	live    liveStreams
}

// NewBackend returns the backend that listens on the unix socket with the given
// absolute path. It need not listen yet.
func NewBackend(socket string, options Options) (*Backend, error) {
	options = options.withDefaults()
	conn, err := grpc.NewClient(Target(socket),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: maxBackoff / 10, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		// Whether to repeat a call is the client's decision, not the front's.
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: options.pingAfter, Timeout: options.pingTimeout}),
		grpc.WithInitialWindowSize(receiveWindow),
		grpc.WithInitialConnWindowSize(receiveWindow),
		grpc.WithReadBufferSize(bufferBytes),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(codec{}),
			grpc.MaxCallRecvMsgSize(options.MaxSendBytes),
			grpc.MaxCallSendMsgSize(options.MaxRecvBytes),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", socket, err)
	}
	b := &Backend{socket: socket, conn: conn, options: options}
	b.web = b.webTransport()
	return b, nil
}

// Target is the gRPC target of the unix socket with the given absolute path. Written as
// it is, a path would end for gRPC at the first "#" or "?".
func Target(socket string) string { return (&url.URL{Scheme: "unix", Path: socket}).String() }

// Close gives up the connections; calls under way fail.
func (b *Backend) Close() error {
	b.web.CloseIdleConnections()
	return b.conn.Close()
}

// Call makes a unary call with the encoded request and returns the encoded
// answer. The metadata of the call that ctx belongs to is sent along; what the
// backend sends back as headers and trailers is dropped. Errors are the
// backend's own, or Unavailable with the reason when it does not answer.
func (b *Backend) Call(ctx context.Context, method string, request []byte) ([]byte, error) {
	var header, trailer metadata.MD
	answer, err := b.call(ctx, method, request, &header, &trailer)
	if err != nil {
		return nil, err
	}
	return answer.Bytes(), nil
}

// Relay is [Backend.Call] for the call that answers the client: headers and
// trailers are passed on to it. The answer has not been copied.
func (b *Backend) Relay(stream grpc.ServerStream, method string, request []byte) (*Frame, error) {
	var header, trailer metadata.MD
	answer, err := b.call(stream.Context(), method, request, &header, &trailer)
	stream.SetTrailer(trailer)
	if headerErr := stream.SetHeader(header); err == nil && headerErr != nil {
		err = headerErr
	}
	return answer, err
}

func (b *Backend) call(ctx context.Context, method string, request []byte, header, trailer *metadata.MD) (*Frame, error) {
	answer := new(Frame)
	err := b.conn.Invoke(outgoing(ctx), method, NewFrame(request), answer, grpc.Header(header), grpc.Trailer(trailer))
	if err != nil {
		return nil, b.explain(err, *header, *trailer)
	}
	return answer, nil
}

// outgoing gives ctx the metadata that the client sent. gRPC itself leaves out
// what belongs to one connection, such as the content type.
func outgoing(ctx context.Context) context.Context {
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return ctx
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// Forward passes a call of any kind on as it is, frame by frame: a frame is read
// only after the one before it has been sent, so that a client that does not read
// holds the backend up instead of filling the front's memory.
func (b *Backend) Forward(stream grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(outgoing(stream.Context()))
	defer cancel()
	up, err := b.open(ctx, stream)
	if err != nil {
		return err
	}
	go upload(stream, up, cancel)
	return b.download(stream, up, func(f *Frame) (*Frame, error) { return f, nil })
}

// Edit changes one encoded message of a server stream. It is called for each
// message and once more, with nil, after the last; a nil result sends nothing.
type Edit func(message []byte) ([]byte, error)

// ForwardEdited makes a server-streaming call with the encoded request and
// passes every answer through edit. When serving ends it is cut before calls of
// other kinds are: a stream of events never ends by itself.
func (b *Backend) ForwardEdited(stream grpc.ServerStream, request []byte, edit Edit) error {
	ctx, cancel := b.live.track(outgoing(stream.Context()))
	defer cancel()
	up, err := b.open(ctx, stream)
	if err != nil {
		return err
	}
	// An error of SendMsg is only a hint; RecvMsg has the reason.
	if err := up.SendMsg(NewFrame(request)); err == nil {
		if err := up.CloseSend(); err != nil {
			return err
		}
	}
	err = b.download(stream, up, func(f *Frame) (*Frame, error) {
		var message []byte
		if f != nil {
			message = f.Bytes()
		}
		edited, err := edit(message)
		if err != nil || edited == nil {
			return nil, err
		}
		return NewFrame(edited), nil
	})
	if err != nil && errors.Is(context.Cause(ctx), errCut) {
		return status.Error(codes.Unavailable, errCut.Error())
	}
	return err
}

// open starts the backend's half of a call; ctx ends it.
func (b *Backend) open(ctx context.Context, stream grpc.ServerStream) (grpc.ClientStream, error) {
	method, ok := grpc.MethodFromServerStream(stream)
	if !ok {
		return nil, errors.New("forward: the call has no method")
	}
	up, err := b.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return nil, b.explain(err, nil, nil)
	}
	return up, nil
}

// upload passes the client's frames on until there are no more. It ends with
// the call: then either side's next operation fails.
func upload(stream grpc.ServerStream, up grpc.ClientStream, cancel context.CancelFunc) {
	for {
		f := new(Frame)
		err := stream.RecvMsg(f)
		switch {
		case errors.Is(err, io.EOF):
			err = up.CloseSend()
		case err == nil:
			if err = up.SendMsg(f); err == nil {
				continue
			}
			// The backend has ended the call; download learns why.
			return
		}
		if err != nil {
			cancel()
		}
		return
	}
}

// download passes the backend's headers, frames, trailers and status on to the
// client. edit sees every frame, and nil after the last.
func (b *Backend) download(stream grpc.ServerStream, up grpc.ClientStream, edit func(*Frame) (*Frame, error)) error {
	// An error here comes again, with its details, from RecvMsg.
	header, err := up.Header()
	if err == nil && len(header) > 0 {
		if err := stream.SendHeader(header); err != nil {
			return err
		}
	}
	for {
		f := new(Frame)
		if err := up.RecvMsg(f); err != nil {
			stream.SetTrailer(up.Trailer())
			if errors.Is(err, io.EOF) {
				return send(stream, nil, edit)
			}
			return b.explain(err, header, up.Trailer())
		}
		if err := send(stream, f, edit); err != nil {
			return err
		}
	}
}

func send(stream grpc.ServerStream, f *Frame, edit func(*Frame) (*Frame, error)) error {
	edited, err := edit(f)
	if err != nil || edited == nil {
		return err
	}
	return stream.SendMsg(edited)
}
