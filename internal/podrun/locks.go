package podrun

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	stateMode = 0o700
	lockMode  = 0o600
	// lockPoll is how often a lock that somebody holds is tried again. flock(2) can wait,
	// but not be interrupted.
	lockPoll = 10 * time.Millisecond
)

// errHeld says that somebody else holds a lock.
var errHeld = errors.New("somebody holds it")

// lock is a lock on the life of a container or the state of a pod. The kernel frees it
// when its holder ends, however that is.
type lock struct {
	file *os.File
	path string
}

// tryLock takes a lock, or fails with errHeld.
func tryLock(path string) (*lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), stateMode); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, lockMode)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			_ = file.Close()
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			_ = file.Close()
			return nil, errHeld
		case err != nil:
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		// Its last holder may have removed it in between: another one is there now.
		if sameFile(file, path) {
			return &lock{file, path}, nil
		}
		_ = file.Close()
	}
}

// takeLock takes a lock as soon as it is free.
func takeLock(ctx context.Context, path string) (*lock, error) {
	for {
		l, err := tryLock(path)
		if !errors.Is(err, errHeld) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, errdefs.New(errdefs.KindOf(context.Cause(ctx)), "wait for "+path, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// awaitFree waits until nobody holds a lock, and does not take it for longer than it looks.
func awaitFree(ctx context.Context, path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l, err := takeLock(ctx, path)
	if err != nil {
		return err
	}
	l.release()
	return nil
}

func sameFile(file *os.File, path string) bool {
	mine, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

// release frees the lock and removes its file, which says nothing.
func (l *lock) release() {
	_ = os.Remove(l.path)
	_ = l.file.Close() // which frees it
}

// held says whether somebody holds a lock.
func held(path string) (bool, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	l, err := tryLock(path)
	if errors.Is(err, errHeld) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	l.release()
	return false, nil
}
