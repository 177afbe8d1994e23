package sandbox

import (
	"errors"
	"os/exec"
	"syscall"

	runc "github.com/containerd/go-runc"
)

// signalStatus is what the number of the signal that ended a process is added to,
// as shells and containerd's reaper have it.
const signalStatus = 128

// Plain is the monitor for a process in which nobody else reaps children. Its zero
// value is ready.
type Plain struct{}

var _ runc.ProcessMonitor = Plain{}

// Start implements [runc.ProcessMonitor]. It starts the process from the calling
// thread.
func (Plain) Start(cmd *exec.Cmd) (chan runc.Exit, error) { return nil, cmd.Start() }

// Wait implements [runc.ProcessMonitor].
func (Plain) Wait(cmd *exec.Cmd, _ chan runc.Exit) (int, error) {
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return signalStatus + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}
