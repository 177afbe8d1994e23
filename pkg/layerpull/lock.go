package layerpull

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/imageref"
)

// lockPoll is how long to wait between two tries for a lock. flock(2) itself
// cannot be interrupted by a context.
const lockPoll = 20 * time.Millisecond

// storeLock is the lock of the whole store: pulls share it, and [Store.Remove] has it
// alone.
const storeLock = "store"

func imageLock(ref imageref.Reference) string {
	return "image-" + ref.Digest().Digest().Encoded()
}

// hold takes what a pull of ref holds as long as it lasts: its layers are not removed
// under its hands, and of two containers with one image, the second finds it done.
func (s *Store) hold(ctx context.Context, ref imageref.Reference) (release func(), err error) {
	unlockStore, err := s.wait(ctx, storeLock, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	unlockImage, err := s.lock(ctx, imageLock(ref))
	if err != nil {
		unlockStore()
		return nil, err
	}
	return func() { unlockImage(); unlockStore() }, nil
}

// lock takes the named lock, waiting for it as long as ctx allows.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	return s.wait(ctx, name, unix.LOCK_EX)
}

// wait takes a lock in the given way, LOCK_EX or LOCK_SH.
func (s *Store) wait(ctx context.Context, name string, how int) (unlock func(), err error) {
	for {
		unlock, ok, err := s.tryLock(name, how)
		if ok || err != nil {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for others who use the store: %w", ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

func (s *Store) tryLock(name string, how int) (unlock func(), ok bool, err error) {
	f, err := os.OpenFile(s.path("locks", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, storeError("lock", err)
	}
	// The close-on-exec descriptor is the lock: a killed process gives it up.
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return nil, false, nil
		}
		return nil, false, storeError("lock", err)
	}
	return func() { _ = f.Close() }, true, nil
}
