package shim

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// CRI-O's execContainerCommon (internal/oci/runtime_vm.go, 1.34) closes the FIFOs of an
// exec as soon as it is deleted and does not wait for its own copy of them. The copy may
// be late, or not even begun, and then the output is lost although the exec succeeded.
// So the shim keeps the FIFOs open from Exec on, which keeps what is in them, and
// answers Delete when CRI-O has read them. It never reads from them itself.
const (
	// drainTimeout ends the wait for a reader that is gone, or that never was: it
	// must not hold Delete for ever.
	drainTimeout = 5 * time.Second
	// endTimeout ends the wait for a reader that has read everything to close. It is
	// short: one that keeps a FIFO open without reading it loses nothing.
	endTimeout = 100 * time.Millisecond
	// unclaimedTimeout ends the wait for a Delete after the exit: CRI-O sends none for
	// an exec that has timed out, and a probe that does so again and again must not use
	// up the shim's file descriptors. It is longer than a Delete takes (containerd's
	// waits 10 s for the output).
	unclaimedTimeout = time.Minute
	// The pauses between two looks at a FIFO.
	firstPause, maxPause = 100 * time.Microsecond, 2 * time.Millisecond
)

// fifo is a FIFO that the shim holds open for reading.
type fifo struct {
	path string
	fd   int
}

// holdFIFO opens path; false if that is not a FIFO.
func holdFIFO(path string) (fifo, bool, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() != fs.ModeNamedPipe {
		return fifo{}, false, nil
	}
	if err != nil {
		return fifo{}, false, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fifo{}, false, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fifo{path, fd}, true, nil
}

func (f fifo) close() { _ = unix.Close(f.fd) }

// openWriter lets a reader in that still waits for a writer (fifo(7)); ok is false if
// there is no reader at all.
func (f fifo) openWriter() (fd int, ok bool) {
	fd, err := unix.Open(f.path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	return fd, err == nil
}

func (f fifo) empty() bool {
	n, err := unix.IoctlGetUint32(f.fd, unix.TIOCINQ) // FIONREAD
	return err != nil || n == 0
}

// drain waits until the FIFO is empty.
func (f fifo) drain(ctx context.Context) bool {
	if f.empty() {
		return true
	}
	// A reader that comes after the shim's own copy has ended would else never get in.
	if fd, ok := f.openWriter(); ok {
		defer func() { _ = unix.Close(fd) }()
	}
	return poll(ctx, f.empty)
}

// ended says whether the FIFO, which the shim no longer holds, has no reader.
func (f fifo) ended() bool {
	fd, ok := f.openWriter()
	if ok {
		_ = unix.Close(fd)
	}
	return !ok
}

// poll waits until done; false if ctx ends before that.
func poll(ctx context.Context, done func() bool) bool {
	for pause := firstPause; !done(); pause = min(2*pause, maxPause) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
	return true
}

// drain closes an exec's FIFOs when their reader has read them, and waits a moment for
// it to close them too: only then has it passed on what it read. False says that output
// was left after the timeout.
func drain(ctx context.Context, fifos []fifo, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	drained := true
	for _, f := range fifos {
		drained = f.drain(ctx) && drained
	}
	closeAll(fifos)
	if !drained {
		return false
	}
	ctx, cancel = context.WithTimeout(ctx, endTimeout)
	defer cancel()
	for _, f := range fifos {
		poll(ctx, f.ended)
	}
	return true
}

func closeAll(fifos []fifo) {
	for _, f := range fifos {
		f.close()
	}
}

// outputs holds the FIFOs of a container's execs. Its zero value is ready.
type outputs struct {
	mu    sync.Mutex
	execs map[string]*output
	// released is set once the container is deleted: nothing is held from then on.
	released bool
}

type output struct {
	fifos  []fifo
	expiry *time.Timer
}

// hold opens those of an exec's output paths that are FIFOs. One that cannot be opened
// is no reason to fail the exec.
func (o *outputs) hold(ctx context.Context, execID string, paths ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.released || o.execs[execID] != nil {
		return
	}
	held := &output{}
	for _, path := range paths {
		f, ok, err := holdFIFO(path)
		if err != nil {
			log.G(ctx).WithError(err).Warn("the output of an exec may be lost")
		}
		if ok {
			held.fifos = append(held.fifos, f)
		}
	}
	if len(held.fifos) == 0 {
		return
	}
	if o.execs == nil {
		o.execs = map[string]*output{}
	}
	o.execs[execID] = held
}

// take hands an exec's FIFOs to the caller.
func (o *outputs) take(execID string) []fifo {
	o.mu.Lock()
	defer o.mu.Unlock()
	held := o.execs[execID]
	if held == nil {
		return nil
	}
	delete(o.execs, execID)
	if held.expiry != nil {
		held.expiry.Stop()
	}
	return held.fifos
}

// expire closes the FIFOs of an exec that has exited if nobody takes them in time.
func (o *outputs) expire(execID string, timeout time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	held := o.execs[execID]
	if held == nil || held.expiry != nil {
		return
	}
	held.expiry = time.AfterFunc(timeout, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.execs[execID] == held {
			delete(o.execs, execID)
			closeAll(held.fifos)
		}
	})
}

// release closes everything.
func (o *outputs) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.released = true
	for id, held := range o.execs {
		if held.expiry != nil {
			held.expiry.Stop()
		}
		closeAll(held.fifos)
		delete(o.execs, id)
	}
}
