package main

import (
	"context"
	"math"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/husk-cri/husk/internal/podrun"
)

// interrupted is why something ends that was not running yet.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return "interrupted: " + i.signal.String() }

// attachment connects the terminal, the signals and the streams of husk to a process.
type attachment struct {
	podrun.IO
	terminal bool
	signals  chan os.Signal
	forward  chan syscall.Signal
	sizes    chan podrun.Size
	cancel   context.CancelCauseFunc
	running  chan struct{}
	once     sync.Once
	restore  func()
}

// attach returns the attachment of a command with --tty and --interactive. ctx ends at the
// first signal that asks for it, as long as the process has not started.
func attach(c *cli.Context) (context.Context, *attachment) {
	// The context of main ends at SIGTERM; here the process decides.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(c.Context))
	a := &attachment{
		terminal: c.Bool("tty"), cancel: cancel, running: make(chan struct{}), restore: func() {},
		signals: make(chan os.Signal, 16), forward: make(chan syscall.Signal, 16), sizes: make(chan podrun.Size, 1),
	}
	a.IO = podrun.IO{Stdout: c.App.Writer, Stderr: c.App.ErrWriter, Signals: a.forward, Sizes: a.sizes}
	if c.Bool("interactive") {
		a.Stdin = c.App.Reader
	}
	// Without a reader of our output the process is told, not husk killed.
	signal.Ignore(unix.SIGPIPE)
	signal.Notify(a.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	go a.relay()
	return ctx, a
}

// relay passes signals on, and keeps one that came too early for that.
func (a *attachment) relay() {
	running := a.running
	var early []syscall.Signal
	asked := false
	for {
		select {
		case <-running:
			running = nil
			a.resize()
			for _, s := range early {
				a.forward <- s
			}
		case s, ok := <-a.signals:
			sig, _ := s.(syscall.Signal)
			switch {
			case !ok:
				return
			case sig == unix.SIGWINCH:
				a.resize()
			case running == nil:
				a.forward <- sig
			case sig == unix.SIGUSR1 || sig == unix.SIGUSR2:
				early = append(early, sig)
			case asked:
				os.Exit(128 + int(sig)) // the next husk cleans up
			default:
				asked, early = true, append(early, sig)
				a.cancel(interrupted{sig})
			}
		}
	}
}

// started is called once the process runs. What is typed is the process' from then on.
func (a *attachment) started() {
	if in, ok := a.Stdin.(*os.File); ok && a.terminal && term.IsTerminal(int(in.Fd())) {
		if state, err := term.MakeRaw(int(in.Fd())); err == nil {
			a.restore = func() { _ = term.Restore(int(in.Fd()), state) } // it may be gone
		}
	}
	close(a.running)
}

// resize tells the process the size of the terminal, the latest alone.
func (a *attachment) resize() {
	out, ok := a.Stdout.(*os.File)
	if !ok || !a.terminal {
		return
	}
	width, height, err := term.GetSize(int(out.Fd()))
	if err != nil {
		return
	}
	select {
	case <-a.sizes:
	default:
	}
	select {
	case a.sizes <- podrun.Size{Width: uint16(width), Height: uint16(height)}: //nolint:gosec // the kernel has them in 16 bits
	default:
	}
}

// end gives the terminal back. It is called in any case, and more than once.
func (a *attachment) end() { a.once.Do(func() { a.restore() }) }

// result is the error of a process that ended with code, or did not begin.
func (a *attachment) result(ctx context.Context, code int, err error) error {
	a.end()
	if why, ok := context.Cause(ctx).(interrupted); ok && err != nil { //nolint:errorlint // it is never wrapped
		return withStatus{err, exitStatus(128 + int(why.signal))}
	}
	if err != nil {
		return err
	}
	return statusOf(code)
}

// keepOwn keeps what was open before husk began, a pipe of the shell for example, from the
// shims that it starts: who waits for its end would wait for theirs.
func keepOwn() error {
	const first = 3
	return unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}
