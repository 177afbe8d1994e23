package podrun

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/podrun/logs"
	"github.com/husk-cri/husk/internal/taskclient"
)

// process is a process of a container, the first or an exec, as its user sees it.
type process struct {
	id, execID string
	io         IO
	log        *logs.Writer // nil for an exec
	terminal   bool

	streams *taskclient.Streams
	outputs []*logs.Output
	// broken is closed when the user's side of an output is gone.
	broken chan struct{}
	once   sync.Once
}

// open makes the FIFOs below dir.
func (p *process) open(dir string) (err error) {
	p.broken = make(chan struct{})
	p.streams, err = taskclient.NewStreams(dir, taskclient.StreamsConfig{
		Terminal: p.terminal, Stdin: p.io.Stdin,
		Stdout: p.output(logs.Stdout, p.io.Stdout), Stderr: p.output(logs.Stderr, p.io.Stderr),
	})
	return err
}

// output is the user's writer and the log.
func (p *process) output(stream logs.Stream, user io.Writer) io.Writer {
	t := &tee{process: p, user: user}
	if p.log != nil {
		t.log = p.log.Stream(stream)
		p.outputs = append(p.outputs, t.log)
	}
	return t
}

// tee writes to a user, who may go away, and to a log, which does not fail.
type tee struct {
	process *process
	user    io.Writer
	log     *logs.Output
}

// Write implements io.Writer.
func (t *tee) Write(b []byte) (int, error) {
	if t.log != nil {
		_, _ = t.log.Write(b)
	}
	if t.user != nil {
		if _, err := t.user.Write(b); err != nil {
			t.user = nil
			t.process.once.Do(func() { close(t.process.broken) })
		}
	}
	return len(b), nil
}

// follow moves input, signals and sizes to a process that was started, until it has ended
// and its output is out.
func (p *process) follow(ctx context.Context, shim *taskclient.Shim) (taskclient.Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.input(ctx, shim)
	go p.control(ctx, shim)
	exit, err := shim.Wait(ctx, p.id, p.execID)
	// What was left in the background may hold the output open; it dies with the container.
	_ = p.streams.Wait(ctx)
	return exit, err
}

// input copies what the user types. A process that does not read keeps its own.
func (p *process) input(ctx context.Context, shim *taskclient.Shim) {
	if p.io.Stdin == nil {
		return
	}
	fifo := p.streams.IO().Stdin
	hold, err := holdOpen(fifo)
	if err != nil {
		return // the process has ended, and its streams with it
	}
	defer func() { _ = hold.Close() }() // nothing was written
	if err := p.streams.CopyStdin(ctx); err != nil || p.terminal {
		return
	}
	if awaitReader(ctx, fifo) == nil {
		_ = shim.CloseStdin(ctx, p.id, p.execID) // or it has ended
	}
}

// control passes signals and sizes on. The second signal that asks for the end kills, as
// does a user whose side of the output is gone: a process of this machine would die of
// SIGPIPE then.
func (p *process) control(ctx context.Context, shim *taskclient.Shim) {
	asked, broken := 0, p.broken
	for {
		select {
		case <-ctx.Done():
			return
		case <-broken:
			broken = nil
			_ = shim.Kill(ctx, p.id, p.execID, unix.SIGKILL, p.execID == "") // or it has ended
		case size := <-p.io.Sizes:
			if p.terminal {
				_ = shim.Resize(ctx, p.id, p.execID, size.Width, size.Height)
			}
		case signal := <-p.io.Signals:
			all := false
			if asks(signal) {
				if asked++; asked > 1 {
					signal, all = unix.SIGKILL, p.execID == ""
				}
			}
			_ = shim.Kill(ctx, p.id, p.execID, signal, all)
		}
	}
}

// asks says whether a signal asks for the end.
func asks(s syscall.Signal) bool { return s == unix.SIGINT || s == unix.SIGTERM }

// close ends the streams and the log.
func (p *process) close() error {
	var errs []error
	if p.streams != nil {
		errs = append(errs, p.streams.Close())
	}
	for _, o := range p.outputs {
		o.End()
	}
	if p.log != nil {
		errs = append(errs, p.log.Close())
	}
	return errors.Join(errs...)
}
