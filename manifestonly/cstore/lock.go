package cstore

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// lockPoll is how often a process looks whether another one has let go of the
// lock. It is held for a few writes at a time.
const lockPoll = 2 * time.Millisecond

// lock orders the writers of Husk: goroutines of one process by the channel,
// processes by flock(2), which the kernel releases when its holder dies. The
// locks of containers/storage cover one call each, and a change of references is
// a read and then a write.
type lock struct {
	path  string
	local chan struct{}
}

func newLock(path string) *lock {
	return &lock{path: path, local: make(chan struct{}, 1)}
}

// acquire waits for the lock, or until ctx is done.
func (l *lock) acquire(ctx context.Context) (release func(), err error) {
	if err := ctx.Err(); err != nil { // select may choose either of two ready cases
		return nil, err
	}
	select {
	case l.local <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() {
		if err != nil {
			<-l.local
		}
	}()
	for {
		file, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, errdefs.New(errdefs.Unavailable, "open the record lock: the image store may be gone or being reset", err)
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && l.current(file) {
			// Closing the file releases the lock; there is no more to report.
			return func() { _ = file.Close(); <-l.local }, nil
		}
		_ = file.Close() // nothing was written
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errdefs.New(errdefs.Internal, "lock "+l.path, err)
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// current reports whether file is still the one that others open: a reset of the
// storage removes it, and a lock on a removed file keeps nobody out.
func (l *lock) current(file *os.File) bool {
	mine, err := file.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(l.path)
	return err == nil && os.SameFile(mine, theirs)
}
