package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// sniffedConn gives back what was read from it.
type sniffedConn struct {
	net.Conn
	head  []byte        // never empty at first
	taken chan struct{} // closed by the first read
	// patient says that a client that has said all it will, and waits for the answer,
	// has not gone: socat and nc end their half of the connection after the request,
	// which Go's HTTP server would take for a client that went away.
	patient atomic.Bool
}

// connKey is where the connection of an HTTP request is kept in its context.
type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// upgraded makes the end of the client's half an end again: it is to be passed on.
func upgraded(ctx context.Context) {
	if conn, ok := ctx.Value(connKey{}).(*sniffedConn); ok {
		conn.patient.Store(false)
	}
}

func (c *sniffedConn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		n, err := c.Conn.Read(p)
		if c.patient.Load() && errors.Is(err, io.EOF) {
			err = c.waitForHangup()
		}
		return n, err
	}
	select {
	case <-c.taken:
	default:
		close(c.taken)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

// waitForHangup returns io.EOF when the client has closed both directions, and the
// connection's own error when its deadline passes or it is closed here.
func (c *sniffedConn) waitForHangup() error {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return io.EOF
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = raw.Read(func(fd uintptr) (done bool) {
		state := []unix.PollFd{{Fd: int32(fd)}} // a hang-up is reported unasked
		_, pollErr = unix.Poll(state, 0)
		if errors.Is(pollErr, unix.EINTR) {
			pollErr = nil
		}
		return pollErr != nil || state[0].Revents != 0
	})
	if err := errors.Join(err, pollErr); err != nil {
		return err
	}
	return io.EOF
}

// CloseWrite ends one direction, for HTTP connections that were upgraded.
func (c *sniffedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return os.ErrInvalid
}
