package mux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// The frame of the ttrpc protocol (PROTOCOL.md of containerd/ttrpc).
const (
	headerBytes = 10
	// maxFrame is ttrpc's own limit. A header may claim 4 GiB.
	maxFrame = 4 << 20

	typeRequest  = 1
	typeResponse = 2
	// flagRemoteClosed ends a stream that data frames made.
	flagRemoteClosed = 1
)

// frame is one message of either direction.
type frame struct {
	stream  uint32
	kind    uint8
	flags   uint8
	payload []byte
}

// tooLargeError is a frame over the limit, which has been skipped.
type tooLargeError struct{ length uint32 }

// Error says how large the frame was.
func (e *tooLargeError) Error() string {
	return fmt.Sprintf("message length %d exceed maximum message size of %d", e.length, maxFrame)
}

func readFrame(r io.Reader) (frame, error) {
	var header [headerBytes]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return frame{}, err
	}
	length := binary.BigEndian.Uint32(header[:4])
	f := frame{stream: binary.BigEndian.Uint32(header[4:8]), kind: header[8], flags: header[9]}
	if length > maxFrame {
		if _, err := io.CopyN(io.Discard, r, int64(length)); err != nil {
			return f, err
		}
		return f, &tooLargeError{length}
	}
	f.payload = make([]byte, length)
	_, err := io.ReadFull(r, f.payload)
	return f, err
}

// peer is the sending side of a connection; several goroutines may use it.
type peer struct {
	mu   sync.Mutex
	conn net.Conn
}

func (p *peer) send(f frame) error {
	data := make([]byte, headerBytes, headerBytes+len(f.payload))
	binary.BigEndian.PutUint32(data[:4], uint32(len(f.payload))) //nolint:gosec // G115: at most maxFrame
	binary.BigEndian.PutUint32(data[4:8], f.stream)
	data[8], data[9] = f.kind, f.flags
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := p.conn.Write(append(data, f.payload...))
	return err
}

// answer ends a stream with a response.
func (p *peer) answer(stream uint32, st *status.Status, payload []byte) error {
	data, err := proto.Marshal(&ttrpc.Response{Status: st.Proto(), Payload: payload})
	if err != nil {
		return fmt.Errorf("encode response: %w", err)
	}
	if len(data) > maxFrame {
		return p.answer(stream, status.New(codes.ResourceExhausted, "the answer is too large for ttrpc"), nil)
	}
	return p.send(frame{stream: stream, kind: typeResponse, payload: data})
}

// reply answers a request with what its method says.
func (p *peer) reply(ctx context.Context, stream uint32, method Method, payload []byte) error {
	message, err := method(ctx, payload)
	if err != nil {
		st, ok := status.FromError(err)
		if !ok {
			st = status.New(codes.Internal, err.Error())
		}
		return p.answer(stream, st, nil)
	}
	data, err := proto.Marshal(message)
	if err != nil {
		return p.answer(stream, status.New(codes.Internal, err.Error()), nil)
	}
	return p.answer(stream, status.New(codes.OK, ""), data)
}

// upstream is a client's connection to the socket that its requests are forwarded to.
type upstream struct {
	*peer
	client *peer
	done   chan struct{}

	mu   sync.Mutex
	open map[uint32]struct{}
	shut bool
}

func dial(ctx context.Context, socket string, client *peer) (*upstream, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	u := &upstream{peer: &peer{conn: conn}, client: client, done: make(chan struct{}), open: map[uint32]struct{}{}}
	go u.receive()
	return u, nil
}

// request forwards the frame that begins a stream.
func (u *upstream) request(f frame) error {
	u.mu.Lock()
	full, shut := len(u.open) >= maxCalls, u.shut
	if !full && !shut {
		u.open[f.stream] = struct{}{}
	}
	u.mu.Unlock()
	switch {
	case full:
		return u.client.answer(f.stream, status.Newf(codes.ResourceExhausted, "over %d requests at once", maxCalls), nil)
	case shut:
		return u.client.answer(f.stream, errClosed(), nil)
	}
	if err := u.send(f); err != nil {
		u.close() // its receiver answers the streams that are open
	}
	return nil
}

func errClosed() *status.Status {
	return status.New(codes.Unavailable, "the CDH that husk forwards to closed the connection")
}

// receive passes on what the upstream sends. When it goes, the streams that are
// still open are answered for it.
func (u *upstream) receive() {
	defer close(u.done)
	for {
		f, err := readFrame(u.conn)
		var large *tooLargeError
		if errors.As(err, &large) {
			err = u.client.answer(f.stream, status.New(codes.ResourceExhausted, large.Error()), nil)
			u.end(f.stream)
		} else if err == nil {
			if f.kind == typeResponse || f.flags&flagRemoteClosed != 0 {
				u.end(f.stream)
			}
			err = u.client.send(f)
		}
		if err != nil {
			break
		}
	}
	_ = u.conn.Close()
	u.mu.Lock()
	u.shut = true
	open := u.open
	u.open = nil
	u.mu.Unlock()
	for stream := range open {
		_ = u.client.answer(stream, errClosed(), nil) // to a client that may be gone
	}
}

// data forwards a part of a stream that is open. Others are dropped: the server of
// containerd/ttrpc 1.2.7 panics on them, and a client must not bring a hub down.
func (u *upstream) data(f frame) {
	u.mu.Lock()
	_, open := u.open[f.stream]
	u.mu.Unlock()
	if open && u.send(f) != nil {
		u.close() // its receiver says so
	}
}

func (u *upstream) end(stream uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.open, stream)
}

func (u *upstream) gone() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// close ends the connection and waits for its receiver.
func (u *upstream) close() {
	_ = u.conn.Close()
	<-u.done
}
