package taskclient

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// logFIFO is the name of the FIFO in a bundle into which a shim writes its log.
	logFIFO = "log"
	// maxLogLine is where lines of a shim's log are cut, in bytes: one that never ends
	// its line must not fill the caller's memory.
	maxLogLine = 4 << 10
	// maxLogRest is what is read of a log when it is closed, in bytes, which is more
	// than a FIFO holds: a shim that goes on writing does not hold Close.
	maxLogRest = 1 << 20
	// logWait is how long Close waits for the writer that the log goes to.
	logWait = time.Second
)

// logDrain copies a shim's log until it is closed.
type logDrain struct {
	fifo *os.File
	done chan struct{}
}

// drainLog makes the FIFO, opens it before there is a shim, as CRI-O does, and copies it.
func drainLog(path string, to io.Writer) (*logDrain, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// For writing too: so there is no end of file between two writers, or before the first.
	fifo, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := fifo.Stat()
	if err == nil && info.Mode().Type() != os.ModeNamedPipe {
		err = fmt.Errorf("%s is not a FIFO", path)
	}
	if err != nil {
		return nil, errors.Join(err, fifo.Close())
	}
	d := &logDrain{fifo: fifo, done: make(chan struct{})}
	if to == nil {
		to = io.Discard
	}
	go d.copy(to)
	return d, nil
}

// close ends the copy, when what is in the FIFO has been copied.
func (d *logDrain) close() {
	_ = d.fifo.SetReadDeadline(time.Now()) // a FIFO takes one; without, it ends with Close
	select {
	case <-d.done:
	case <-time.After(logWait):
	}
	_ = d.fifo.Close()
}

func (d *logDrain) copy(to io.Writer) {
	defer close(d.done)
	in := bufio.NewReaderSize(&rest{file: d.fifo, left: maxLogRest}, maxLogLine)
	cut := false // in the middle of a line that was written already
	for {
		text, err := in.ReadSlice('\n')
		whole := err == nil
		if len(text) > 0 && !cut {
			_, _ = to.Write([]byte(line(string(text), maxLogLine) + "\n")) // the shim must not wait for the one who failed
		}
		cut = !whole
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// rest reads a FIFO until a deadline, and then what is in it.
type rest struct {
	file *os.File
	over bool
	left int
}

// Read implements io.Reader.
func (r *rest) Read(p []byte) (int, error) {
	if !r.over {
		n, err := r.file.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		r.over = true
	}
	raw, err := r.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	n, readErr := 0, error(nil)
	if err := raw.Control(func(fd uintptr) { n, readErr = unix.Read(int(fd), p[:min(len(p), r.left)]) }); err != nil {
		return 0, err
	}
	if readErr != nil || n <= 0 {
		return 0, io.EOF
	}
	r.left -= n
	return n, nil
}
