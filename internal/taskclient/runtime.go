// Package taskclient starts containerd shims v2 and speaks their task API, with the calls
// that stock CRI-O 1.34 makes (internal/oci/runtime_vm.go) and in the environment that
// containerd gives them (runtime/v2/shim). A shim is another project's program, or a broken
// one: whatever it does, no call outlives its context or fills the caller's memory.
package taskclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// namespace is the containerd namespace in which CRI-O runs all containers.
	namespace = "default"
	// startTimeout is how long `start` may take. It only starts a daemon; one that
	// hangs must not hang its caller.
	startTimeout = time.Minute
	// deleteTimeout is how long `delete` may take: it kills what is left of a container.
	deleteTimeout = 2 * time.Minute
	// pipeDelay is how long the output of a command that has ended is waited for. A
	// daemon that keeps the pipe it inherited would else hang the caller for its own life.
	pipeDelay = time.Second
	// maxPrinted is the most that a command may print, in bytes: it is one address. A
	// shim that floods its output is stopped.
	maxPrinted = 16 << 10
	// maxComplaint is what is kept of a command's standard error, in bytes.
	maxComplaint = 4 << 10
)

func errFlood() error { return fmt.Errorf("it printed more than %d bytes", maxPrinted) }

// Runtime is a containerd shim v2.
type Runtime struct {
	// Path of the binary, absolute.
	Path string
}

// Start starts the shim of a container, or finds the one of its pod, as CRI-O does: it
// runs the binary's `start` in the container's bundle, which must hold its config.json.
// What the shim writes into the bundle's log FIFO goes to logTo line by line until the
// [Shim] is closed; nil drops it. When Start fails the caller calls [Runtime.Delete],
// because a daemon may run already.
//
// Errors: InvalidArgument for a path that is not absolute or no program, NotFound when there
// is no such binary or bundle, Unsupported for a shim that speaks something else than version 2 of the task API
// in ttrpc on a unix socket, Unavailable for one that does not answer in time, Canceled
// and DeadlineExceeded with ctx; else Internal, with the shim's own words.
func (r Runtime) Start(ctx context.Context, id, bundle string, logTo io.Writer) (_ *Shim, err error) {
	op := "start the shim of container " + id
	log, err := drainLog(filepath.Join(bundle, logFIFO), logTo)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	defer func() {
		if err != nil {
			log.close()
		}
	}()
	printed, err := r.run(ctx, op, startTimeout, bundle, "-id", id, "start")
	if err != nil {
		return nil, err
	}
	address, err := parseAddress(printed)
	if err != nil {
		return nil, errdefs.New(kindOr(err, errdefs.Internal), op, fmt.Errorf("%s: %w", r.Path, err))
	}
	shim, err := Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	shim.log = log
	return shim, nil
}

// Delete runs the binary's `delete`, which cleans up after a container whose shim is gone.
// The bundle stays the caller's. Errors are those of [Runtime.Start].
func (r Runtime) Delete(ctx context.Context, id, bundle string) error {
	_, err := r.run(ctx, "clean up after the shim of container "+id, deleteTimeout, bundle, "-id", id, "-bundle", bundle, "delete")
	return err
}

// run runs one of the binary's commands in a bundle and returns what it prints.
func (r Runtime) run(ctx context.Context, op string, limit time.Duration, bundle string, args ...string) ([]byte, error) {
	if !filepath.IsAbs(r.Path) {
		return nil, errdefs.Newf(errdefs.InvalidArgument, op, "the runtime %q is not an absolute path", r.Path)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errdefs.Newf(errdefs.Unavailable, r.Path, "it did not end within %s", limit))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	printed := &capture{limit: maxPrinted, over: func() { stop(errdefs.New(errdefs.Internal, r.Path, errFlood())) }}
	complaint := &capture{limit: maxComplaint}
	cmd := exec.CommandContext(ctx, r.Path, append([]string{"-namespace", namespace, "-address", "", "-publish-binary", self}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = bundle, environ(os.Environ()), printed, complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // its children too
	cmd.WaitDelay = pipeDelay
	switch err := cmd.Run(); {
	case ctx.Err() != nil: // it, or what it said, is not to be trusted
		cause := context.Cause(ctx)
		return nil, errdefs.New(errdefs.KindOf(cause), op, cause)
	case errors.Is(err, fs.ErrNotExist):
		return nil, errdefs.New(errdefs.NotFound, op, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, errdefs.Newf(errdefs.Internal, op, "%s: %w: %s", r.Path, err, line(complaint.kept.String(), maxText))
	}
	return printed.kept.Bytes(), nil
}

// kindOr is the kind that err was given, or else another one.
func kindOr(err error, other errdefs.Kind) errdefs.Kind {
	if k := errdefs.KindOf(err); k != errdefs.Internal {
		return k
	}
	return other
}
