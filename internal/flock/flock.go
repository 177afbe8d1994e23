// Package flock has locks on files that hold among processes, by flock(2). The kernel
// frees one when its holder ends, however that is: a killed process leaves no lock.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// ErrHeld says that somebody else holds a lock.
var ErrHeld = errors.New("somebody holds it")

const (
	mode = 0o600
	// poll is how often a lock that somebody holds is tried again: flock(2) can wait, but
	// not be interrupted. What is done below these locks takes milliseconds.
	poll = 2 * time.Millisecond
)

// Lock is a lock that is held.
type Lock struct{ file *os.File }

// Try takes the lock of a file, which is made where it is missing. The error is
// [ErrHeld], or that of opening the file.
func Try(path string) (*Lock, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, mode)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && current(file, path) {
			return &Lock{file}, nil
		}
		_ = file.Close() // nothing was written
		switch {
		case err == nil, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, ErrHeld
		default:
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// current reports whether file is still the one that others open: its last holder, or a
// reset of what it lies in, may have removed it, and a lock on a removed file keeps
// nobody out.
func current(file *os.File, path string) bool {
	mine, err := file.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(path)
	return err == nil && os.SameFile(mine, theirs)
}

// Take takes the lock of a file as soon as it is free, or fails when ctx is done.
func Take(ctx context.Context, path string) (*Lock, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		l, err := Try(path)
		if !errors.Is(err, ErrHeld) {
			return l, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(poll):
		}
	}
}

// Release frees the lock.
func (l *Lock) Release() { _ = l.file.Close() } // it was only locked

// Remove frees the lock and removes its file.
func (l *Lock) Remove() {
	_ = os.Remove(l.file.Name()) // before it is free: afterwards it is somebody else's
	l.Release()
}

// Mutex orders the goroutines of one process by a channel, and processes by the lock of
// a file.
type Mutex struct {
	path  string
	local chan struct{}
}

// NewMutex returns the mutex on the file at path, which is made when it is first taken.
func NewMutex(path string) *Mutex {
	return &Mutex{path: path, local: make(chan struct{}, 1)}
}

// Acquire waits for the mutex, or until ctx is done. The error is Unavailable when the
// folder of the file is gone.
func (m *Mutex) Acquire(ctx context.Context) (release func(), err error) {
	if ctx.Err() != nil { // select may choose either of two ready cases
		return nil, context.Cause(ctx)
	}
	select {
	case m.local <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	l, err := Take(ctx, m.path)
	if err != nil {
		<-m.local
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, errdefs.New(errdefs.Unavailable, "lock "+m.path+": what it lies in may be gone or being reset", err)
	}
	return func() { l.Release(); <-m.local }, nil
}
