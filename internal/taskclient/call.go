package taskclient

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	service = "containerd.task.v2.Task"
	// callTimeout ends a call that a shim does not answer; to stop a virtual machine
	// takes its time. Create has createTimeout, and a Wait takes as long as a process.
	callTimeout = 2 * time.Minute
	// createTimeout ends a Create that nobody watches. Layers may be pulled in it.
	createTimeout = time.Hour
	// dialTimeout is how long a shim may take to accept: its socket's queue may be full.
	dialTimeout = 10 * time.Second
	// noTimeout is that of a Wait: its context alone ends it.
	noTimeout = 0
	// redoTimeout is how long a question is put again to a shim that ends connections but
	// still listens: Husk's keeper, while it kills what a dead shim has left, and before it
	// answers for it.
	redoTimeout = 30 * time.Second
	redoPause   = 100 * time.Millisecond
)

// The frames of ttrpc (github.com/containerd/ttrpc, PROTOCOL.md): a header of ten bytes
// (length, stream, type, flags), then the payload.
const (
	headerSize   = 10
	onlyStream   = 1 // a client's first, and each connection's last
	typeRequest  = 1
	typeResponse = 2
	// maxRequest is the longest message that a server of ttrpc takes, in bytes.
	maxRequest = 4 << 20
	// maxAnswer bounds what a shim can make its caller hold, in bytes. The answers of
	// the task API have a few numbers and paths; errors have a text.
	maxAnswer = 1 << 20
)

// exchange makes one call on a connection of its own. ttrpc's client would keep one for
// all, but it has neither deadlines nor bounds of its own, writes a log line for whatever a
// server makes up, and its servers do not see that the caller of a Wait went away: here ctx
// ends the connection, and so the call on both sides.
func exchange(ctx context.Context, path, method string, req, resp proto.Message) error {
	frame, err := encode(ctx, method, req)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
	if err != nil {
		return &goneError{err: err, refused: true}
	}
	defer func() { _ = conn.Close() }() // it has served
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := conn.Write(frame); err != nil {
		return &goneError{err: err}
	}
	answer, err := receive(conn)
	if err != nil {
		return err
	}
	if s := status.FromProto(answer.GetStatus()); s.Err() != nil {
		return s.Err()
	}
	if err := proto.Unmarshal(answer.GetPayload(), resp); err != nil {
		return fmt.Errorf("its answer is none of %s: %w", method, err)
	}
	return nil
}

// redo asks, and asks again when it is cut off, until it was for as long as limit.
func redo(ctx context.Context, limit time.Duration, ask func() error) error {
	var cut time.Time // since when
	for {
		began := time.Now()
		err := ask()
		var gone *goneError
		if !errors.As(err, &gone) || gone.refused {
			return err
		}
		if cut.IsZero() || time.Since(began) > limit { // the last one was heard
			cut = time.Now()
		}
		if time.Since(cut) >= limit {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(redoPause):
		}
	}
}

// encode makes the frame of a request.
func encode(ctx context.Context, method string, req proto.Message) ([]byte, error) {
	payload, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	request := &ttrpc.Request{
		Service: service, Method: method, Payload: payload,
		Metadata: []*ttrpc.KeyValue{{Key: namespaces.TTRPCHeader, Value: namespace}},
	}
	if deadline, ok := ctx.Deadline(); ok {
		request.TimeoutNano = max(int64(time.Until(deadline)), 1)
	}
	frame, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, headerSize), request)
	if err != nil {
		return nil, err
	}
	size := len(frame) - headerSize
	if size > maxRequest {
		return nil, errdefs.Newf(errdefs.TooLarge, "call "+method, "a request of %d bytes, more than %d", size, maxRequest)
	}
	binary.BigEndian.PutUint32(frame, uint32(size)) //nolint:gosec // at most maxRequest
	binary.BigEndian.PutUint32(frame[4:], onlyStream)
	frame[8] = typeRequest
	return frame, nil
}

// receive reads the one answer.
func receive(conn io.Reader) (*ttrpc.Response, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return nil, &goneError{err: err}
	}
	size, stream, kind := binary.BigEndian.Uint32(header[:]), binary.BigEndian.Uint32(header[4:]), header[8]
	if size > maxAnswer {
		return nil, fmt.Errorf("its answer has %d bytes, more than %d", size, maxAnswer)
	}
	if stream != onlyStream || kind != typeResponse {
		return nil, fmt.Errorf("it sent a message of type %d for call %d, which was not made", kind, stream)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(conn, payload); err != nil {
		return nil, &goneError{err: err}
	}
	answer := &ttrpc.Response{}
	if err := proto.Unmarshal(payload, answer); err != nil {
		return nil, fmt.Errorf("its answer is not ttrpc's: %w", err)
	}
	return answer, nil
}

// goneError is a shim that nobody can speak to, or that ended in the middle of a call.
type goneError struct {
	err error
	// refused is set when not even the connection came about.
	refused bool
}

func (e *goneError) Error() string {
	if errors.Is(e.err, io.EOF) || errors.Is(e.err, io.ErrUnexpectedEOF) {
		return "the shim ended without an answer"
	}
	return "the shim does not answer: " + e.err.Error()
}

func (e *goneError) Unwrap() error { return e.err }

// knock finds out whether anybody listens.
func knock(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
	if err != nil {
		return &goneError{err: err, refused: true}
	}
	return conn.Close()
}

func isGone(err error) bool {
	var gone *goneError
	return errors.As(err, &gone)
}
