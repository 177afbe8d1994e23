package podrun

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/taskclient"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// ExecOptions say what to run in a container.
type ExecOptions struct {
	Args, Env []string
	// WorkingDir is the container's where it is empty.
	WorkingDir string
	Terminal   bool
	IO         IO
	// Started is called once the process runs. Nil: nobody is.
	Started func()
}

// Exec runs a process in a container, as its user, and returns its exit code.
func (e *Engine) Exec(ctx context.Context, c bundles.Container, o ExecOptions) (code int, err error) {
	op := "exec in container " + c.Name
	if c.State.Status != bundles.StatusRunning {
		return 0, errdefs.Newf(errdefs.InvalidArgument, op, "it is %s", c.State.Status)
	}
	spec, err := e.execProcess(c, o)
	if err != nil {
		return 0, errdefs.New(errdefs.KindOf(err), op, err)
	}
	shim, err := e.dial(ctx, c)
	if err != nil {
		return 0, err
	}
	defer func() { _ = shim.Close() }() // a connection
	p := process{id: c.ID, execID: bundles.NewID()[:16], io: o.IO, terminal: o.Terminal}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.open(e.streams(c)); err != nil {
		return 0, err
	}
	err = shim.Exec(ctx, taskclient.ExecRequest{ID: c.ID, ExecID: p.execID, Process: spec, IO: p.streams.IO(), Terminal: o.Terminal})
	if err != nil {
		return 0, err
	}
	ctx = context.WithoutCancel(ctx)
	defer func() {
		clean, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		_, _ = shim.Delete(clean, c.ID, p.execID) // with the container at the latest
	}()
	if _, err := shim.Start(ctx, c.ID, p.execID); err != nil {
		return 0, err
	}
	if o.Started != nil {
		o.Started()
	}
	exit, err := p.follow(ctx, shim)
	return exit.Code, err
}

// execProcess is the container's own process with other arguments.
func (e *Engine) execProcess(c bundles.Container, o ExecOptions) (*rspec.Process, error) {
	bundle, err := e.Store.RunDir(c.ID)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	var spec rspec.Spec
	if err := json.NewDecoder(io.LimitReader(file, bundles.MaxSpec)).Decode(&spec); err != nil {
		return nil, err
	}
	p := spec.Process
	if p == nil {
		return nil, errors.New("its spec has no process")
	}
	p.Args, p.Terminal = o.Args, o.Terminal
	p.Env = append(p.Env, o.Env...)
	if o.WorkingDir != "" {
		p.Cwd = o.WorkingDir
	}
	return p, nil
}
