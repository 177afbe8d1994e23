package sandboxes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	podsDir = "pods"
	// sendTimeout is how long a shim may take to read a request, which fits into the
	// socket's buffer: one that was stopped must not keep a pull, and its credentials.
	sendTimeout = 10 * time.Second
	// othersWrite are the bits by which a directory can be changed by others than its owner.
	othersWrite = 0o022
)

// dial connects to the socket of a pod's shim, for one call. The credentials of a pull go
// there, so who could have made the socket is looked at first. NotFound: there is no such
// pod; Unavailable: nobody listens.
func (c Client) dial(ctx context.Context, sandboxID string) (*wire, error) {
	op := "connect to the shim of sandbox " + sandboxID
	p, err := pod.New(c.stateDir(), sandboxID)
	if err != nil {
		return nil, err
	}
	dir, err := openOwned(c.stateDir(), podsDir, sandboxID)
	if err != nil {
		return nil, dialError(op, err)
	}
	defer func() { _ = dir.Close() }() // only looked at
	name := filepath.Base(p.Socket())
	if err := checkSocket(dir, name); err != nil {
		return nil, dialError(op, err)
	}
	// By the descriptor: what was looked at is what is connected to.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, dialError(op, err)
	}
	if err := checkPeer(conn); err != nil {
		return nil, dialError(op, errors.Join(err, conn.Close()))
	}
	if err := conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return nil, dialError(op, errors.Join(err, conn.Close()))
	}
	return &wire{Conn: conn, closed: make(chan struct{})}, nil
}

func dialError(op string, err error) error {
	kind := errdefs.Unavailable
	if errors.Is(err, fs.ErrNotExist) {
		kind = errdefs.NotFound
	}
	return errdefs.New(kind, op, err)
}

// openOwned opens a directory, each part of whose path below dir is looked at. The caller
// closes it.
func openOwned(dir string, below ...string) (*os.File, error) {
	at, path := unix.AT_FDCWD, dir
	var last *os.File
	for _, name := range append([]string{dir}, below...) {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if last != nil {
			path = filepath.Join(path, name)
			_ = last.Close() // only looked at
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		last, at = os.NewFile(uintptr(fd), path), fd
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			_ = last.Close()
			return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		if st.Uid != owner() || st.Mode&othersWrite != 0 {
			_ = last.Close()
			return nil, fmt.Errorf("%s has owner %d and mode %04o: others could have put a socket there", path, st.Uid, st.Mode&0o7777)
		}
	}
	return last, nil
}

// owner is whom the sockets must belong to: root, as whom both husk and the shims run.
func owner() uint32 { return uint32(os.Geteuid()) }

func checkSocket(dir *os.File, name string) error {
	path := filepath.Join(dir.Name(), name)
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != owner() {
		return fmt.Errorf("%s is not a socket of root", path)
	}
	return nil
}

// checkPeer refuses a server that is somebody else's.
func checkPeer(conn net.Conn) error {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("a %T has no peer", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if peerErr != nil {
		return peerErr
	}
	if peer.Uid != owner() {
		return fmt.Errorf("user %d listens there", peer.Uid)
	}
	return nil
}

// The frames of ttrpc (github.com/containerd/ttrpc, PROTOCOL.md): a header of ten bytes
// (length, stream, type, flags), then the payload.
const (
	headerSize   = 10
	onlyStream   = 1 // a client's first, and each connection's last
	typeResponse = 2
	typeData     = 3
	flagClosed   = 1
)

// wire is a connection for one call, which lets through what a server may answer to that
// and nothing else: frames of the one stream, up to its end, none over the bound. ttrpc's
// client writes a log line for each frame of another stream, and lets memory go by a length
// alone.
type wire struct {
	net.Conn

	header [headerSize]byte
	got    int  // bytes of the header
	left   int  // bytes of the payload
	last   bool // this frame ends the stream
	ended  bool
	// bad is what was wrong. It must have no gRPC status: ttrpc takes such an error for
	// that of one call, and reads on.
	bad error

	closeOnce sync.Once
	closed    chan struct{}
}

// Read implements net.Conn. After the last frame it waits for the client to close: by an
// end of the connection ttrpc could lose the answer.
func (w *wire) Read(p []byte) (int, error) {
	if w.ended {
		<-w.closed
		return 0, net.ErrClosed
	}
	n, err := w.Conn.Read(p)
	if w.bad == nil {
		w.bad = w.inspect(p[:n])
	}
	if w.bad != nil {
		return 0, w.bad
	}
	return n, err
}

// Close implements net.Conn.
func (w *wire) Close() error {
	w.closeOnce.Do(func() { close(w.closed) })
	return w.Conn.Close()
}

func (w *wire) inspect(data []byte) error {
	for len(data) > 0 {
		if w.ended {
			return errors.New("its answer goes on after its end")
		}
		if w.got < headerSize {
			n := copy(w.header[w.got:], data)
			w.got, data = w.got+n, data[n:]
			if w.got < headerSize {
				return nil
			}
			if err := w.begin(); err != nil {
				return err
			}
		}
		n := min(w.left, len(data))
		w.left, data = w.left-n, data[n:]
		if w.left == 0 {
			w.got, w.ended = 0, w.last
		}
	}
	return nil
}

// begin looks at a whole header.
func (w *wire) begin() error {
	size, stream, kind := binary.BigEndian.Uint32(w.header[:]), binary.BigEndian.Uint32(w.header[4:]), w.header[8]
	switch {
	case size > maxAnswer:
		return fmt.Errorf("its answer has a message of %d bytes, more than %d", size, maxAnswer)
	case stream != onlyStream, kind != typeResponse && kind != typeData:
		return fmt.Errorf("it sent a message of type %d for call %d, which was not made", kind, stream)
	}
	w.left, w.last = int(size), kind == typeResponse || w.header[9]&flagClosed != 0
	return nil
}
