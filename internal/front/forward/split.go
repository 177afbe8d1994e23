package forward

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// http2Preface starts every HTTP/2 connection (RFC 9113, section 3.4).
	http2Preface = "PRI * HTTP/2.0"
	// sniffTimeout bounds the wait for a new connection's first bytes, against
	// clients that connect and say nothing.
	sniffTimeout = 5 * time.Second
	// settleTimeout is what is left of it once serving ends: a client that has been
	// accepted and not yet heard speaks within it or tries the next husk.
	settleTimeout = 500 * time.Millisecond
	// acceptPause is how long accepting rests after an error such as too many
	// open files, which would otherwise become a busy loop.
	acceptPause = 50 * time.Millisecond
)

// splitter hands each connection of a socket to the server for what it speaks. It
// loses none: one that was accepted before serving ends reaches its server, which
// then tells the client in its own language to go elsewhere.
type splitter struct {
	log        *slog.Logger
	grpc, http *queue

	pending  sync.WaitGroup // connections accepted that no server has taken yet
	mu       sync.Mutex
	sniffing map[net.Conn]struct{}
}

func newSplitter(addr net.Addr, log *slog.Logger) *splitter {
	return &splitter{log: log, grpc: newQueue(addr), http: newQueue(addr), sniffing: map[net.Conn]struct{}{}}
}

// serve accepts until the listener is closed.
func (s *splitter) serve(ctx context.Context, listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			s.add(conn)
			s.pending.Go(func() { s.split(conn) })
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			s.log.Warn("accept a connection", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		}
	}
}

func (s *splitter) add(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sniffing[conn] = struct{}{}
	_ = conn.SetReadDeadline(time.Now().Add(sniffTimeout)) // fails on a dead connection, as the read will
}

// split hears what one connection speaks and waits until its server has taken it.
func (s *splitter) split(conn net.Conn) {
	to, head := s.sniff(conn)
	s.mu.Lock()
	delete(s.sniffing, conn)
	s.mu.Unlock()
	if to == nil || conn.SetReadDeadline(time.Time{}) != nil {
		s.log.Debug("closed a connection that speaks neither gRPC nor HTTP")
		_ = conn.Close() // nothing was promised to it
		return
	}
	taken := make(chan struct{})
	sniffed := &sniffedConn{Conn: conn, head: head, taken: taken}
	sniffed.patient.Store(to == s.http)
	if !to.put(sniffed) {
		_ = conn.Close()
		return
	}
	select {
	case <-taken:
	case <-to.done:
	}
}

// sniff reads what tells the two apart; nil for neither.
func (s *splitter) sniff(conn net.Conn) (*queue, []byte) {
	head := make([]byte, 0, len(http2Preface))
	for len(head) < cap(head) {
		n, err := conn.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if n > 0 && !bytes.HasPrefix([]byte(http2Preface), head) {
			if head[0] < 'A' || head[0] > 'Z' { // no HTTP method
				return nil, nil
			}
			return s.http, head
		}
		if err != nil {
			return nil, nil
		}
	}
	return s.grpc, head
}

// settle waits, once nothing is accepted any more, until every connection that was
// has reached its server.
func (s *splitter) settle() {
	s.mu.Lock()
	soon := time.Now().Add(settleTimeout)
	for conn := range s.sniffing {
		_ = conn.SetReadDeadline(soon) // as in add
	}
	s.mu.Unlock()
	stop := time.AfterFunc(2*settleTimeout, func() { // servers that do not take what they are given
		_ = s.grpc.Close()
		_ = s.http.Close()
	})
	defer stop.Stop()
	s.pending.Wait()
}

// queue is the listener of one server.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newQueue(addr net.Addr) *queue {
	done := make(chan struct{})
	return &queue{addr: addr, conns: make(chan net.Conn), done: done, close: sync.OnceFunc(func() { close(done) })}
}

// put reports whether somebody took the connection.
func (q *queue) put(conn net.Conn) bool {
	select {
	case q.conns <- conn:
		return true
	case <-q.done:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.close()
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }
