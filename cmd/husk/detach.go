package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// monitorEnv is set for the husk that stays with a detached container.
	monitorEnv = "HUSK_RUN_MONITOR"
	// readyFD is where that husk says that the container runs: its ID.
	readyFD = 3
)

func isMonitor() bool { return os.Getenv(monitorEnv) != "" }

// detach starts this husk again, in a session of its own, and returns once the container
// runs. What goes wrong until then the other husk says, and exits with.
func detach(c *cli.Context) error {
	const op = "detach"
	if err := keepOwn(); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	defer func() { _ = ready.Close() }()                  // only read
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx // our own binary, and it outlives us
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), monitorEnv+"=1")
	cmd.Stderr = os.Stderr
	if c.Bool("password-stdin") {
		cmd.Stdin = os.Stdin
	}
	cmd.ExtraFiles = []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = tell.Close() // the other end is the child's
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-c.Done(): // Ctrl-C before it runs: the other one undoes it, and ends
			_ = cmd.Process.Signal(unix.SIGINT)
		case <-stop:
		}
	}()
	id, err := bufio.NewReader(ready).ReadString('\n')
	if err == nil {
		return printLine(c.App.Writer, strings.TrimSpace(id))
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exitStatus(exit.ExitCode()) // it has said why
	}
	if err == nil {
		return errdefs.Newf(errdefs.Internal, op, "husk ended before the container ran")
	}
	return errdefs.New(errdefs.Internal, op, err)
}

// monitorReady returns what tells the husk that waits, and lets go of its terminal.
func monitorReady() (func(id string), error) {
	tell := os.NewFile(readyFD, "ready")
	unix.CloseOnExec(readyFD)
	if err := os.Unsetenv(monitorEnv); err != nil { // not for the shims it starts
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return func(id string) {
		_ = os.Chdir("/") // where husk was called may be unmounted
		for fd := range readyFD {
			_ = unix.Dup3(int(null.Fd()), fd, 0) // both are open
		}
		_ = printLine(tell, id) // or nobody waits any more
		_ = tell.Close()
	}, nil
}
