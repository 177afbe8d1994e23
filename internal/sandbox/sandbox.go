// Package sandbox runs work inside a pod's sandbox on the host: in a child
// process, which is this binary executed again, in the network namespace and the
// cgroup of the pod, in mount and process namespaces of its own, with the pod's
// resolv.conf in place of the host's and nothing of the host's environment.
//
// The request goes to the child as JSON on its standard input and the answer
// comes back as JSON on its standard output, errors with their errdefs kind. What it
// reports meanwhile has a pipe of its own. What the work is, its callers say: package
// layers pulls layers, package podpull what describes an image.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"runtime"
	"syscall"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// childPath is the PATH of a child: key providers and credential helpers are found in it.
const childPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// killedStatus is how the monitor reports a SIGKILL. Only the kernel sends one that
// the context did not ask for.
const killedStatus = signalStatus + int(syscall.SIGKILL)

// Job is one run of a child.
type Job struct {
	// Command is the first argument of the child; it makes the binary run [Serve].
	Command string
	// Op says what is being done, and to which reference, for errors.
	Op string
	// Place is where the child runs.
	Place Place
	// Name is unique in the cgroup of the place and names the child's own; it is not
	// used without one.
	Name string
	// OOMScoreAdj is the least the child has. The caller's own, which may protect it
	// from the kernel, is not inherited: what a child uses up is the pod's loss.
	OOMScoreAdj int
	// Env is the environment of the child, next to PATH. It holds no secret, because
	// the kernel shows it.
	Env []string
	// Variables, "name=value", are what the child adds to its environment itself. They
	// go with the request, so one may hold a secret, as the address of a proxy does.
	Variables []string
	// Progress is told what the child reports, one JSON value of up to 4 KiB each, at
	// most 50 a second, and after Run has returned nothing. Its calls do not overlap.
	// One that blocks holds up the end of the job. Zero: the child reports nothing.
	Progress func(json.RawMessage)
	// MaxAnswer bounds the child's answer, in bytes. Zero: 16 MiB.
	MaxAnswer int
}

// Runner starts children.
type Runner struct {
	// Monitor starts and waits for processes. It must be the one that reaps the
	// children of the calling process (reaper.Default in a shim); nil is [Plain].
	Monitor runc.ProcessMonitor
	// Executable is the binary to run; empty is the calling one.
	Executable string
}

// Run does a job in a child: it sends the request, and reads the answer into result,
// which is a pointer. A canceled context kills the child and everything it started.
func (r Runner) Run(ctx context.Context, job Job, work, result any) error {
	data, err := json.Marshal(request[any]{
		ResolvConf: job.Place.ResolvConf, Variables: job.Variables, Reports: job.Progress != nil, Work: work,
	})
	if err != nil {
		return errdefs.Newf(errdefs.Internal, job.Op, "encode the request: %w", err)
	}
	if len(data) > maxRequest {
		return errdefs.Newf(errdefs.TooLarge, job.Op, "the request has %d bytes, the limit is %d", len(data), maxRequest)
	}
	done := make(chan error, 1)
	go func() {
		// The thread enters the pod's network namespace and is the one whose death
		// would kill the child (PDEATHSIG), so it is held until the child is gone.
		// Then it goes back and on: to end it, as a goroutine does that never unlocks,
		// would kill whatever it had started before, such as an OCI runtime at work.
		runtime.LockOSThread()
		back, err := r.runIn(ctx, job, data, result)
		done <- err
		if back() != nil {
			select {} // a thread in the wrong namespace is of no use, and still must not end
		}
		runtime.UnlockOSThread()
	}()
	return <-done
}

// runIn does the job from the pod's network namespace, which the calling thread is
// then in until it calls back. back is never nil.
func (r Runner) runIn(ctx context.Context, job Job, data []byte, result any) (back func() error, _ error) {
	back, err := enterNetNS(job.Place.NetNS)
	if err != nil {
		return back, errdefs.New(errdefs.Internal, job.Op, err)
	}
	return back, r.run(ctx, job, data, result)
}

func (r Runner) run(ctx context.Context, job Job, data []byte, result any) error {
	stdin, feed, err := os.Pipe()
	if err != nil {
		return errdefs.New(errdefs.Internal, job.Op, err)
	}
	defer func() { _ = stdin.Close(); _ = feed.Close() }() // closed twice on success; nothing is lost
	out, diag := &limitedBuffer{max: job.MaxAnswer}, &tail{max: maxDiagnostics}
	if out.max == 0 {
		out.max = maxAnswer
	}
	cmd, monitor := r.command(job, stdin), r.Monitor
	cmd.Stdout, cmd.Stderr = out, diag
	if monitor == nil {
		monitor = Plain{}
	}
	told, err := openReports(cmd, job.Progress)
	if err != nil {
		return errdefs.New(errdefs.Internal, job.Op, err)
	}
	defer told.close()
	exits, err := monitor.Start(cmd)
	if err != nil {
		return errdefs.New(errdefs.Internal, job.Op, err)
	}
	// The child's end alone is left, so that to write to a dead child fails.
	_ = stdin.Close()
	kill := func() { _ = cmd.Process.Kill() } // it may be gone already
	defer context.AfterFunc(ctx, kill)()
	told.start(kill)

	leave, err := admit(job, cmd.Process.Pid)
	var sendErr error
	if err == nil {
		sendErr = send(feed, data)
	} else {
		kill() // it waits for a request that never comes
	}
	status, waitErr := monitor.Wait(cmd, exits)
	toldErr, leaveErr := told.end(), leave()
	switch {
	case ctx.Err() != nil:
		return errdefs.New(errdefs.KindOf(context.Cause(ctx)), job.Op, context.Cause(ctx))
	case err != nil || waitErr != nil || toldErr != nil:
		return errdefs.New(errdefs.Internal, job.Op, errors.Join(err, waitErr, toldErr, leaveErr))
	}
	err = out.decode(result)
	switch {
	case err != nil && status == killedStatus:
		return errdefs.Newf(errdefs.TooLarge, job.Op, "the child was killed, as the kernel does for want of memory: "+
			"what it holds counts against the memory limit of the pod, or of the slice that is named for pulls")
	case err != nil && status != 0:
		return errdefs.Newf(errdefs.Internal, job.Op, "child ended with status %d: %s", status, diag)
	case err == nil && leaveErr != nil:
		return errdefs.New(errdefs.Internal, job.Op, leaveErr)
	case sendErr != nil && err != nil:
		return errdefs.New(errdefs.Internal, job.Op, errors.Join(err, sendErr))
	}
	return err
}

// admit puts a started child, which waits for its work and has used nothing, into
// the pod's cgroup. leave is never nil.
func admit(job Job, pid int) (leave func() error, err error) {
	leave = func() error { return nil }
	if job.Place.Cgroup != "" {
		left, err := Join(path.Join(job.Place.Cgroup, groupPrefix+job.Name), pid)
		if err != nil {
			return leave, err
		}
		leave = left
	}
	return leave, raiseOOMScore(pid, job.OOMScoreAdj)
}

func send(feed *os.File, data []byte) error {
	if _, err := feed.Write(data); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	if err := feed.Close(); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

func (r Runner) command(job Job, stdin *os.File) *exec.Cmd {
	exe := r.Executable
	if exe == "" {
		exe = "/proc/self/exe"
	}
	cmd := exec.Command(exe, job.Command) //nolint:noctx // our own binary; ctx kills it through the monitor
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=" + childPath}, job.Env...)
	cmd.Stdin = stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL,
		// A process namespace, so that what the child starts (key providers) dies with it.
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
	}
	return cmd
}

// enterNetNS moves the calling thread, which is locked, into a network namespace;
// back, which is never nil, moves it back to where it was.
func enterNetNS(path string) (back func() error, err error) {
	back = func() error { return nil }
	if path == "" {
		return back, nil
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return back, fmt.Errorf("open the network namespace of the thread: %w", err)
	}
	ns, err := os.Open(path)
	if err != nil {
		return own.Close, fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return own.Close, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return func() error {
		defer func() { _ = own.Close() }()
		return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
	}, nil
}
