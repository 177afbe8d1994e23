package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// reportFD is where a child that reports finds its end of the pipe: the first
	// descriptor after the standard ones.
	reportFD = 3
	// maxReport bounds one report: a child gone wrong must not fill its parent's memory.
	maxReport = 4 << 10
	// reportPause is the least time between two reports that a parent takes. A child
	// that reports without end waits at its own end of the pipe, and costs its parent,
	// whose processor time no pod pays for, next to nothing.
	reportPause = 20 * time.Millisecond
	// reportGrace is how long the parent reads on when the child is dead. All that is
	// left is in the pipe then, unless somebody else holds its other end.
	reportGrace = time.Second
)

// Report tells the parent how far the work is: v, as one line of JSON. What is too long
// or comes to nobody's ears is dropped; the work goes on.
type Report func(v any)

// reporter returns the way to report for a child whose parent asked for reports, or not.
func reporter(wanted bool) Report {
	if !wanted {
		return func(any) {}
	}
	unix.CloseOnExec(reportFD) // not for the programs that the child starts
	pipe := os.NewFile(reportFD, "reports")
	return func(v any) {
		line, err := json.Marshal(v)
		if err != nil || len(line) >= maxReport {
			return
		}
		_, _ = pipe.Write(append(line, '\n'))
	}
}

// reports passes on what a child reports. A nil one is for a child that does not.
type reports struct {
	pipe, childs *os.File
	tell         func(json.RawMessage)
	// ended is closed when the child is dead; done then has the reader's error.
	ended chan struct{}
	done  chan error
}

// openReports gives the child a pipe for reports, if there is anybody to tell.
func openReports(cmd *exec.Cmd, tell func(json.RawMessage)) (*reports, error) {
	if tell == nil {
		return nil, nil
	}
	pipe, childs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = []*os.File{childs}
	return &reports{pipe: pipe, childs: childs, tell: tell, ended: make(chan struct{}), done: make(chan error, 1)}, nil
}

// close closes what is open of the pipe.
func (r *reports) close() {
	if r != nil {
		_ = r.pipe.Close()
		_ = r.childs.Close()
	}
}

// start reads what the child, which has its own end by now, reports. kill is called if
// that is nonsense.
func (r *reports) start(kill func()) {
	if r == nil {
		return
	}
	_ = r.childs.Close() // else the reader would never come to an end
	go func() {
		err := r.read()
		if err != nil {
			kill()
		}
		r.done <- err
	}()
}

func (r *reports) read() error {
	const op = "read the reports of a sandbox child"
	in := bufio.NewReaderSize(r.pipe, maxReport)
	pause := time.NewTicker(reportPause)
	defer pause.Stop()
	var last json.RawMessage
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return errdefs.Newf(errdefs.Internal, op, "one of more than %d bytes", maxReport)
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
			if last != nil {
				r.tell(last)
			}
			return nil
		case err != nil:
			return errdefs.New(errdefs.Internal, op, err)
		case !json.Valid(line):
			return errdefs.Newf(errdefs.Internal, op, "one is not JSON")
		}
		last = append(json.RawMessage(nil), line...)
		select {
		case <-r.ended: // of what is left the last counts
		case <-pause.C:
			r.tell(last)
			last = nil
		}
	}
}

// end waits until the last report of a dead child is passed on, and returns what was
// wrong with them.
func (r *reports) end() error {
	if r == nil {
		return nil
	}
	close(r.ended)
	// A pipe always takes a deadline.
	_ = r.pipe.SetReadDeadline(time.Now().Add(reportGrace))
	return <-r.done
}
