package taskclient

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// quietTimeout is how long [Streams.Wait] waits for an output on which nothing comes. What
// a process has left behind in the background may hold it open for ever.
const quietTimeout = 5 * time.Second

// StreamsConfig says where the streams of a process come from and go.
type StreamsConfig struct {
	// Terminal is set for a process with a terminal: Stderr is not used then.
	Terminal bool
	// Stdin is read by [Streams.CopyStdin]. Nil: the process has no input.
	Stdin io.Reader
	// Stdout and Stderr are written by one goroutine each. Nil: that output is dropped.
	Stdout, Stderr io.Writer
}

// none says that there are no streams at all.
func (c StreamsConfig) none() bool { return c.Stdin == nil && c.Stdout == nil && c.Stderr == nil }

// Streams are the FIFOs of one process, at this end. Both ends of each are held open here
// until the shim can be expected to have opened its own: so a shim that dies before it has
// hangs nobody, and nothing is lost of one that comes late.
type Streams struct {
	dir     string
	io      IO
	outputs []*output
	stdin   *input
	quiet   time.Duration

	release, close sync.Once
	closed         chan struct{}
	closeErr       error
}

// output is a FIFO that the process writes.
type output struct {
	file, hold *os.File
	to         io.Writer
	// since is when the present read began, in nanoseconds of Unix time; 0: none is under way.
	since atomic.Int64
	// done is closed at the end; err is to be read after that.
	done chan struct{}
	err  error
}

// input is a FIFO that the process reads.
type input struct {
	file, hold *os.File
	from       io.Reader
}

// NewStreams makes FIFOs in a new directory below dir, which is made too, and begins to
// copy what comes; for a process without any streams it makes none. The caller closes them.
func NewStreams(dir string, cfg StreamsConfig) (_ *Streams, err error) {
	s := &Streams{quiet: quietTimeout, closed: make(chan struct{})}
	const op = "make the streams of a process"
	defer func() {
		if err != nil {
			err = errdefs.New(errdefs.Internal, op, errors.Join(err, s.Close()))
		}
	}()
	if cfg.none() {
		return s, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp(dir, "io-"); err != nil {
		return nil, err
	}
	if cfg.Stdin != nil {
		s.io.Stdin = filepath.Join(s.dir, "stdin")
		// The reader is first: a writer does not open without one.
		hold, file, err := openBoth(s.io.Stdin)
		if err != nil {
			return nil, err
		}
		s.stdin = &input{file: file, hold: hold, from: cfg.Stdin}
	}
	if s.io.Stdout, err = s.output("stdout", cfg.Stdout); err != nil {
		return nil, err
	}
	if cfg.Terminal {
		return s, nil
	}
	if s.io.Stderr, err = s.output("stderr", cfg.Stderr); err != nil {
		return nil, err
	}
	return s, nil
}

// output makes an output, and returns its path. One that nobody wants is made too:
// containerd's shim for runc has either all streams or none.
func (s *Streams) output(name string, to io.Writer) (string, error) {
	if to == nil {
		to = io.Discard
	}
	path := filepath.Join(s.dir, name)
	file, hold, err := openBoth(path)
	if err != nil {
		return "", err
	}
	o := &output{file: file, hold: hold, to: to, done: make(chan struct{})}
	s.outputs = append(s.outputs, o)
	go o.copy()
	return path, nil
}

// openBoth makes a FIFO and opens both its ends, neither of which waits.
func openBoth(path string) (reader, writer *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if reader, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, err
	}
	if writer, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, errors.Join(err, reader.Close())
	}
	return reader, writer, nil
}

// copyBuffer is what is read at once, in bytes: as much as a FIFO holds.
const copyBuffer = 64 << 10

func (o *output) copy() {
	defer close(o.done)
	defer func() { _ = o.file.Close() }() // a shim may wait for its reader to end
	buf := make([]byte, copyBuffer)
	for {
		o.since.Store(time.Now().UnixNano())
		n, err := o.file.Read(buf)
		o.since.Store(0)
		if n > 0 && o.err == nil { // after a failure the rest is dropped: the process must not hang
			_, o.err = o.to.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// IO returns the paths of the FIFOs.
func (s *Streams) IO() IO { return s.io }

func errClosedStreams() error {
	return errdefs.Newf(errdefs.Canceled, "copy", "the streams were closed here")
}

// CopyStdin copies the input into its FIFO until the input ends, and then closes that. It
// is called once, after [Shim.Start], and followed by [Shim.CloseStdin], without which the
// process sees no end; for a terminal it is not. It returns when ctx or the Streams end,
// with Canceled or DeadlineExceeded; a read of the input that blocks goes on until it
// returns, and what it read is lost. Internal when the input cannot be read.
func (s *Streams) CopyStdin(ctx context.Context) error {
	const op = "copy the input of a process"
	if s.stdin == nil {
		return nil
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(s.stdin.file, s.stdin.from)
		ended <- err
	}()
	var err error
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.closed:
		err = errClosedStreams()
	case err = <-ended:
	}
	_ = s.stdin.file.Close() // which ends a copy that waits to write
	if errors.Is(err, os.ErrClosed) {
		err = errClosedStreams()
	}
	if err != nil {
		return errdefs.New(errdefs.KindOf(err), op, err)
	}
	return nil
}

// Wait waits until the shim has closed the outputs and all that came on them was written.
// It is to be called after the process has ended, or the shim has: until then an output
// that the shim has not opened yet counts as open. DeadlineExceeded when an output stays
// open and silent for five seconds, as a process in the background can keep it; Internal
// for output that could not be written; Canceled or DeadlineExceeded when ctx ends first.
func (s *Streams) Wait(ctx context.Context) error {
	const op = "wait for the output of a process"
	s.release.Do(func() {
		for _, o := range s.outputs {
			_ = o.hold.Close() // from here on the end of the shim's side is the end
		}
	})
	began := time.Now()
	var errs []error
	for _, o := range s.outputs {
		if err := s.await(ctx, o, began); err != nil {
			return errdefs.New(errdefs.KindOf(err), op, err)
		}
		errs = append(errs, o.err)
	}
	if err := errors.Join(errs...); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

// await waits for the end of an output, or until it was silent for too long. One that
// waits to be written is not silent.
func (s *Streams) await(ctx context.Context, o *output, began time.Time) error {
	for {
		var left time.Duration
		if since := o.since.Load(); since == 0 {
			left = s.quiet
		} else {
			quiet := time.Since(began)
			left = s.quiet - min(quiet, time.Since(time.Unix(0, since)))
		}
		if left <= 0 {
			return errdefs.Newf(errdefs.DeadlineExceeded, filepath.Base(o.file.Name()), "something holds it open, and said nothing for %s", s.quiet)
		}
		select {
		case <-o.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.closed:
			return errClosedStreams()
		case <-time.After(left):
		}
	}
}

// Close releases the FIFOs, whatever is in them, and removes them. A read of the input or
// a write of output that blocks may end later. A second Close does nothing.
func (s *Streams) Close() error {
	s.close.Do(func() {
		close(s.closed)
		for _, o := range s.outputs {
			_, _ = o.hold.Close(), o.file.Close() // perhaps again
		}
		if s.stdin != nil {
			_, _ = s.stdin.hold.Close(), s.stdin.file.Close()
		}
		if s.dir != "" {
			s.closeErr = os.RemoveAll(s.dir)
		}
	})
	return s.closeErr
}
