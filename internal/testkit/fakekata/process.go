package fakekata

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The commands of what stands for a process.
const (
	processCommand = "process"
	execCommand    = "exec"
)

// exitCommand, as a container's first argument, has it end at once with the status that
// is the second. All others sleep.
const exitCommand = "exit"

// runProcess stands for a container's process: it prints what it was told it is, a JSON
// line, and ends when it is told to, or with its shim. One that was exec'd ends at once.
func runProcess(in io.Reader, out io.Writer, exec bool) (int, error) {
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP)
	reader := bufio.NewReader(in)
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return 0, err
	}
	var p Process
	if err := json.Unmarshal(line, &p); err != nil {
		return 0, err
	}
	if _, err := out.Write(line); err != nil {
		return 0, err
	}
	if len(p.Args) > 1 && p.Args[0] == exitCommand {
		return strconv.Atoi(p.Args[1])
	}
	if exec {
		return 0, nil
	}
	orphan := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, reader)
		close(orphan)
	}()
	select {
	case <-ends:
		return 0, nil
	case <-orphan:
		return killed, nil
	}
}

// task is a container's process, or one that was exec'd beside it. Its fields belong to
// the service's lock; done is closed when it has ended.
type task struct {
	process        Process
	command        string // processCommand or execCommand
	stdout, stderr string // FIFOs; "" is none
	cmd            *exec.Cmd
	ended          bool
	status         uint32
	exitedAt       time.Time
	done           chan struct{}
}

func newTask(p Process, command, stdout, stderr string) *task {
	return &task{process: p, command: command, stdout: stdout, stderr: stderr, done: make(chan struct{})}
}

// openStream opens a FIFO for a process. For reading too: so it neither waits for a reader
// nor ends the process when there is none any more.
func openStream(path string) (*os.File, error) {
	if path == "" {
		path = os.DevNull
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// start starts the process.
func (t *task) start() (err error) {
	line, err := json.Marshal(t.process)
	if err != nil {
		return err
	}
	stdout, err := openStream(t.stdout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stdout.Close()) }()
	stderr, err := openStream(t.stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stderr.Close()) }()
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // its end is the container's, not a call's
	cmd.Args = []string{BinaryName, t.command}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	t.cmd = cmd
	if _, err := stdin.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("tell the process what it is: %w", err)
	}
	return nil
}

// waited is the status of a process that was waited for, as a shell has it.
func waited(cmd *exec.Cmd) uint32 {
	_ = cmd.Wait() // its status says it
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return uint32(128 + int(ws.Signal()))
	}
	return uint32(cmd.ProcessState.ExitCode())
}

// end says that the task has ended, once.
func (t *task) end(status uint32) {
	if t.ended {
		return
	}
	t.ended, t.status, t.exitedAt = true, status, time.Now().UTC()
	close(t.done)
}
