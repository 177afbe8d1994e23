package handover

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// probeTimeout bounds the question whether anybody answers on a socket.
	probeTimeout = time.Second
	// lockTimeout bounds the wait for another husk that is starting. It is longer than
	// what that one does meanwhile: two probes and a hand-over.
	lockTimeout = 15 * time.Second
	// lockPause is the time between two attempts. The kernel tells nobody when a lock
	// is released, unless one waits for it without an end.
	lockPause = 10 * time.Millisecond
)

// lock makes husks that start take turns at a socket. The file stays: whoever
// removed it would let two processes hold two locks of one name.
func lock(ctx context.Context, path string) (unlock func() error, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if err := makeDir(path); err != nil {
		return nil, err
	}
	for {
		unlock, err := tryLock(path)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, errdefs.Newf(errdefs.Unavailable, "listen on "+path, "another husk is starting there: %w", ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

// tryLock fails with EWOULDBLOCK when another process has the lock.
func tryLock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "lock "+path, err)
	}
	if err := flock(f); err != nil {
		return nil, errdefs.New(errdefs.Internal, "lock "+path, errors.Join(err, f.Close()))
	}
	return f.Close, nil
}

func flock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var locked error
	err = raw.Control(func(fd uintptr) { locked = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) })
	return errors.Join(err, locked)
}

// answers reports whether somebody serves the socket; a socket that nobody serves
// is removed, and nothing else is. The caller has the lock.
func answers(ctx context.Context, network, path string) (bool, error) {
	op := "listen on " + path
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, errdefs.New(errdefs.Internal, op, err)
	case info.Mode().Type() != fs.ModeSocket:
		return false, errdefs.Newf(errdefs.InvalidArgument, op, "there is a file that is no socket")
	}
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, network, path)
	switch {
	case err == nil:
		_ = conn.Close() // nothing was said on it
		return true, nil
	case errors.Is(err, fs.ErrNotExist): // removed meanwhile, by the one who served it
		return false, nil
	case !errors.Is(err, syscall.ECONNREFUSED): // busy, perhaps: not known to be dead
		return false, errdefs.New(errdefs.InUse, op, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, errdefs.New(errdefs.Internal, "remove the stale socket "+path, err)
	}
	return false, nil
}

// bound is a listening socket and the file it is known by.
type bound struct {
	*net.UnixListener
	path string
	file fs.FileInfo // as it was then; nil when it is somebody else's to remove
}

// bind takes over a listening socket whose file a husk has made.
func bind(l *net.UnixListener, path string) *bound {
	l.SetUnlinkOnClose(false) // by then the file may be another husk's
	file, err := os.Lstat(path)
	if err != nil {
		file = nil
	}
	return &bound{l, path, file}
}

// create listens on a new socket, which nobody can reach before it has its mode.
func create(ctx context.Context, network, path string, mode fs.FileMode) (*bound, error) {
	op := "listen on " + path
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var set error
		// A socket file has the mode of its socket, less the umask.
		err := raw.Control(func(fd uintptr) { set = unix.Fchmod(int(fd), uint32(mode.Perm())) })
		return errors.Join(err, set)
	}}
	l, err := config.Listen(ctx, network, path)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	inner, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errdefs.Newf(errdefs.Internal, op, "unexpected listener %T", l), l.Close())
	}
	made := bind(inner, path)
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(errdefs.New(errdefs.Internal, op, err), inner.Close())
	}
	return made, nil
}

// closeAndRemove ends the socket together with its file. A husk that is starting
// there at this moment is not waited for: it knows what a stale socket is.
func (b *bound) closeAndRemove() error {
	if b.file == nil {
		return b.Close()
	}
	unlock, err := tryLock(b.path)
	if err != nil {
		return b.Close()
	}
	// The open socket keeps its inode, so no other file can have that number now.
	var removeErr error
	if now, err := os.Lstat(b.path); err == nil && os.SameFile(now, b.file) {
		removeErr = os.Remove(b.path)
	}
	return errors.Join(b.Close(), removeErr, unlock())
}

// samePath reports whether two paths name one file: /var/run and /run, say.
func samePath(a, b string) bool {
	if a == b {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
