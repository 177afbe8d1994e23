// Package mux serves some ttrpc methods of a socket itself and forwards every other
// request, as raw frames, to another socket.
//
// The server of containerd/ttrpc knows a fixed set of services and has no place for
// "all others", so this package reads the frames itself. A frame is a header of ten
// bytes (length, stream ID, type, flags) and a payload; only the payload of a
// request is looked at, for the service's name. What is forwarded is passed on byte
// by byte, so services and messages that do not exist yet work too, streams included.
package mux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// maxConnections bounds the clients at once: each may hold a frame of 4 MiB in
	// memory. A guest has a handful.
	maxConnections = 32
	// maxCalls bounds the unanswered requests of one client, so that one that never
	// reads its answers cannot pile up goroutines or pulls.
	maxCalls = 64
	// dialTimeout bounds the connecting to the upstream socket, which is local.
	dialTimeout = 5 * time.Second
	// writeTimeout bounds the sending of one frame to a peer that does not read.
	writeTimeout = 30 * time.Second
)

// Method answers one request. Its error becomes the status of the answer; one that
// is no gRPC status is INTERNAL.
type Method func(ctx context.Context, payload []byte) (proto.Message, error)

// Server answers and forwards. Its fields are set before Serve and not changed.
type Server struct {
	// Methods are served here, by "service/method".
	Methods map[string]Method
	// Upstream is the Unix socket that gets everything else; "" for none, and then
	// everything else is Unimplemented.
	Upstream string
	// Log gets what no client is told; nil for none.
	Log *slog.Logger
}

// Serve answers the clients of l until ctx ends, and then closes l. It returns when
// every method it called has returned. A nil error means that ctx ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConnections)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a client: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			s.warn("client refused", "error", fmt.Errorf("over %d clients", maxConnections))
			_ = conn.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-slots }()
			c := &client{server: s, out: &peer{conn: conn}, calls: make(chan struct{}, maxCalls)}
			c.run(ctx)
		})
	}
}

func (s *Server) warn(message string, args ...any) {
	if s.Log != nil {
		s.Log.Warn(message, args...)
	}
}

// client is one connection and what it asked for.
type client struct {
	server *Server
	out    *peer
	calls  chan struct{}
	up     *upstream // nil before the first request that is forwarded
}

// run reads frames until the client or the server goes.
func (c *client) run(ctx context.Context) {
	// Methods end with the client: nobody is left to answer.
	ctx, cancel := context.WithCancel(ctx)
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	defer func() { _ = c.out.conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.out.conn.Close() })
	defer stop()
	defer func() {
		if c.up != nil {
			c.up.close()
		}
	}()
	for {
		f, err := readFrame(c.out.conn)
		var large *tooLargeError
		switch {
		case errors.As(err, &large): // ttrpc's servers skip the frame and say so
			err = c.out.answer(f.stream, status.New(codes.ResourceExhausted, large.Error()), nil)
		case err != nil:
			return
		case f.kind == typeRequest:
			err = c.request(ctx, f, &calls)
		case c.up != nil:
			c.up.data(f) // only the upstream has streams
		}
		if err != nil {
			return
		}
	}
}

// request serves or forwards one request. An error ends the client.
func (c *client) request(ctx context.Context, f frame, calls *sync.WaitGroup) error {
	var req ttrpc.Request
	if err := proto.Unmarshal(f.payload, &req); err != nil {
		return c.out.answer(f.stream, status.Newf(codes.InvalidArgument, "unmarshal request error: %v", err), nil)
	}
	method, ok := c.server.Methods[req.GetService()+"/"+req.GetMethod()]
	if !ok {
		return c.forward(ctx, f, &req)
	}
	select {
	case c.calls <- struct{}{}:
	default:
		return c.out.answer(f.stream, status.Newf(codes.ResourceExhausted, "over %d requests at once", maxCalls), nil)
	}
	calls.Go(func() {
		defer func() { <-c.calls }()
		if req.GetTimeoutNano() > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(req.GetTimeoutNano()))
			defer cancel()
		}
		// A client that is gone is noticed by the one that reads.
		_ = c.out.reply(ctx, f.stream, method, req.GetPayload())
	})
	return nil
}

// forward hands a request to the upstream socket, to which each client has a
// connection of its own, so that their streams cannot be mixed up.
func (c *client) forward(ctx context.Context, f frame, req *ttrpc.Request) error {
	if c.server.Upstream == "" {
		return c.out.answer(f.stream, status.Newf(codes.Unimplemented, "service %s: husk serves image pulls only, and no CDH socket is configured to forward to", req.GetService()), nil)
	}
	if c.up == nil || c.up.gone() {
		up, err := dial(ctx, c.server.Upstream, c.out)
		if err != nil {
			c.server.warn("CDH not reached", "socket", c.server.Upstream, "error", err)
			return c.out.answer(f.stream, status.Newf(codes.Unavailable, "service %s: the CDH that husk forwards to is not reached: %v", req.GetService(), err), nil)
		}
		c.up = up
	}
	return c.up.request(f)
}
