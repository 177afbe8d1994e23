package taskclient

import (
	"context"
	"encoding/json"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	runtimeoptions "github.com/containerd/containerd/pkg/runtimeoptions/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/katavolume"
)

// The names under which a shim of containerd knows what a request carries (typeurl).
const (
	optionsURL = "runtimeoptions.v1.Options"
	processURL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
)

// Shim is a shim that runs. Its methods may be called at the same time. In all of them an
// empty execID is the container's own process.
//
// Their errors have the kind of the code with which the shim answers (NotFound,
// InvalidArgument, ...; InUse for what exists already or is in a state that forbids the
// call, Internal for a code that says nothing), Unavailable when the shim is gone, ends in
// the middle of the call, or does not answer within two minutes (Create: an hour), Internal when
// what it answers is no answer, and Canceled or DeadlineExceeded when ctx, or the Shim,
// ends first. Then the call may yet have its effect.
type Shim struct {
	address, path string
	redo          time.Duration
	log           *logDrain

	closeOnce sync.Once
	done      chan struct{}
}

// Dial connects to a shim by its address, and finds out whether anybody listens.
// Unavailable if not; Unsupported when the address is none of a unix socket.
func Dial(ctx context.Context, address string) (*Shim, error) {
	op := "connect to the shim at " + line(address, maxText)
	path, err := socketPath(address)
	if err != nil {
		return nil, errdefs.New(errdefs.KindOf(err), op, err)
	}
	if err := knock(ctx, path); err != nil {
		return nil, explain(ctx, op, err)
	}
	return &Shim{address: address, path: path, redo: redoTimeout, done: make(chan struct{})}, nil
}

// Address returns the shim's address, as [Dial] takes it.
func (s *Shim) Address() string { return s.address }

// Close ends the calls that are under way and the copy of the shim's log. The shim and its
// containers run on. A second Close does nothing.
func (s *Shim) Close() error {
	s.closeOnce.Do(func() {
		close(s.done)
		if s.log != nil {
			s.log.close()
		}
	})
	return nil
}

// call makes a call that ends with ctx, with the Shim and, unless that is noTimeout, after
// limit.
func (s *Shim) call(ctx context.Context, c call) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func(ended <-chan struct{}) { // not ctx, which is another one below
		select {
		case <-s.done:
			cancel(errClosed())
		case <-ended:
		}
	}(ctx.Done())
	if c.limit != noTimeout {
		var end context.CancelFunc
		ctx, end = context.WithTimeoutCause(ctx, c.limit, errdefs.Newf(errdefs.Unavailable, "the shim", "no answer within %s", c.limit))
		defer end()
	}
	ask := func() error { return exchange(ctx, s.path, c.method, c.req, c.resp) }
	if c.asks {
		return explain(ctx, c.op, redo(ctx, s.redo, ask))
	}
	return explain(ctx, c.op, ask())
}

// call is one call of the task API.
type call struct {
	op, method string
	req, resp  proto.Message
	limit      time.Duration
	// asks is set for a call that changes nothing, and may be made twice.
	asks bool
}

// IO is where the streams of a process are: FIFOs, or what else the shim knows as a URI.
type IO struct {
	// Stdin, Stdout and Stderr; "" is none. A terminal has no Stderr.
	Stdin, Stdout, Stderr string
}

// CreateRequest is a container to create.
type CreateRequest struct {
	// ID of the container.
	ID string
	// Bundle is its directory, with the config.json.
	Bundle string
	// IO are its streams.
	IO IO
	// Terminal is set for a process with a terminal of its own.
	Terminal bool
	// ConfigPath is the runtime's configuration file; "" is the runtime's own choice.
	ConfigPath string
	// GuestPull is the image that the runtime pulls. Nil: the root file system is in the bundle.
	GuestPull *katavolume.Volume
}

// Create creates a container and returns the process ID of its init, which waits for
// [Shim.Start]. A container whose Create failed may exist: it is the caller's to delete.
func (s *Shim) Create(ctx context.Context, r CreateRequest) (pid int, err error) {
	op := processOp("create", r.ID, "")
	req := &taskapi.CreateTaskRequest{
		ID: r.ID, Bundle: r.Bundle, Terminal: r.Terminal, Stdin: r.IO.Stdin, Stdout: r.IO.Stdout, Stderr: r.IO.Stderr,
	}
	if r.ConfigPath != "" {
		data, err := proto.Marshal(&runtimeoptions.Options{ConfigPath: r.ConfigPath})
		if err != nil {
			return 0, errdefs.New(errdefs.InvalidArgument, op, err)
		}
		req.Options = &anypb.Any{TypeUrl: optionsURL, Value: data}
	}
	if r.GuestPull != nil {
		option, err := r.GuestPull.Option()
		if err != nil {
			return 0, errdefs.New(errdefs.KindOf(err), op, err)
		}
		req.Rootfs = []*types.Mount{{Type: katavolume.MountType, Options: []string{option}}}
	}
	resp := &taskapi.CreateTaskResponse{}
	err = s.call(ctx, call{op: op, method: "Create", req: req, resp: resp, limit: createTimeout})
	return int(resp.GetPid()), err
}

// Start starts a created process and returns its process ID.
func (s *Shim) Start(ctx context.Context, id, execID string) (pid int, err error) {
	resp := &taskapi.StartResponse{}
	err = s.call(ctx, call{op: processOp("start", id, execID), method: "Start", req: &taskapi.StartRequest{ID: id, ExecID: execID}, resp: resp, limit: callTimeout})
	return int(resp.GetPid()), err
}

// ExecRequest is one more process of a container.
type ExecRequest struct {
	// ID of the container, and that of the process in it.
	ID, ExecID string
	// Process is what to run, whole: nothing is taken from the container's.
	Process *rspec.Process
	// IO are its streams.
	IO IO
	// Terminal is set for a process with a terminal of its own.
	Terminal bool
}

// Exec creates a process in a container that runs; [Shim.Start] starts it.
func (s *Shim) Exec(ctx context.Context, r ExecRequest) error {
	op := processOp("create", r.ID, r.ExecID)
	if r.ExecID == "" || r.Process == nil {
		return errdefs.Newf(errdefs.InvalidArgument, op, "an exec needs an ID and a process")
	}
	process, err := json.Marshal(r.Process)
	if err != nil {
		return errdefs.New(errdefs.InvalidArgument, op, err)
	}
	req := &taskapi.ExecProcessRequest{
		ID: r.ID, ExecID: r.ExecID, Terminal: r.Terminal, Stdin: r.IO.Stdin, Stdout: r.IO.Stdout, Stderr: r.IO.Stderr,
		Spec: &anypb.Any{TypeUrl: processURL, Value: process},
	}
	return s.call(ctx, call{op: op, method: "Exec", req: req, resp: &anypb.Any{}, limit: callTimeout})
}

// Exit is how a process ended.
type Exit struct {
	// Code is its exit code; for one that a signal ended 128 and the signal.
	Code int
	// At is when. Zero: the shim does not say.
	At time.Time
}

// Wait waits for the end of a process, however long that takes. When Husk's shim was killed
// it is its keeper that answers.
func (s *Shim) Wait(ctx context.Context, id, execID string) (Exit, error) {
	resp := &taskapi.WaitResponse{}
	if err := s.call(ctx, call{op: processOp("wait for", id, execID), method: "Wait", req: &taskapi.WaitRequest{ID: id, ExecID: execID}, resp: resp, limit: noTimeout, asks: true}); err != nil {
		return Exit{}, err
	}
	return exitOf(resp.GetExitStatus(), resp.GetExitedAt()), nil
}

// Kill sends a signal to a process; all: to every process of the container.
func (s *Shim) Kill(ctx context.Context, id, execID string, signal syscall.Signal, all bool) error {
	req := &taskapi.KillRequest{ID: id, ExecID: execID, Signal: uint32(signal), All: all} //nolint:gosec // signals are small and positive
	return s.call(ctx, call{op: processOp("send "+signal.String()+" to", id, execID), method: "Kill", req: req, resp: &anypb.Any{}, limit: callTimeout})
}

// Delete deletes a process that has ended, or that was never started.
func (s *Shim) Delete(ctx context.Context, id, execID string) (Exit, error) {
	resp := &taskapi.DeleteResponse{}
	if err := s.call(ctx, call{op: processOp("delete", id, execID), method: "Delete", req: &taskapi.DeleteRequest{ID: id, ExecID: execID}, resp: resp, limit: callTimeout}); err != nil {
		return Exit{}, err
	}
	return exitOf(resp.GetExitStatus(), resp.GetExitedAt()), nil
}

// Resize sets the size of a process' terminal, in characters.
func (s *Shim) Resize(ctx context.Context, id, execID string, width, height uint16) error {
	req := &taskapi.ResizePtyRequest{ID: id, ExecID: execID, Width: uint32(width), Height: uint32(height)}
	return s.call(ctx, call{op: processOp("resize the terminal of", id, execID), method: "ResizePty", req: req, resp: &anypb.Any{}, limit: callTimeout})
}

// CloseStdin lets a started process see the end of its input, once it has read what was
// written before ([Streams.CopyStdin]).
func (s *Shim) CloseStdin(ctx context.Context, id, execID string) error {
	req := &taskapi.CloseIORequest{ID: id, ExecID: execID, Stdin: true}
	return s.call(ctx, call{op: processOp("close the input of", id, execID), method: "CloseIO", req: req, resp: &anypb.Any{}, limit: callTimeout})
}

// The states of a process.
const (
	StatusCreated = "created"
	StatusRunning = "running"
	StatusPaused  = "paused"
	StatusStopped = "stopped"
	StatusUnknown = "unknown"
)

// State is what a shim says of a container.
type State struct {
	// Status is one of the Status constants.
	Status string
	// Pid is the process ID of its init.
	Pid int
	// Exit is how it ended, for one that is stopped.
	Exit Exit
}

// State returns the state of a container.
func (s *Shim) State(ctx context.Context, id string) (State, error) {
	resp := &taskapi.StateResponse{}
	if err := s.call(ctx, call{op: processOp("look at", id, ""), method: "State", req: &taskapi.StateRequest{ID: id}, resp: resp, limit: callTimeout, asks: true}); err != nil {
		return State{}, err
	}
	state := State{Status: StatusUnknown, Pid: int(resp.GetPid()), Exit: exitOf(resp.GetExitStatus(), resp.GetExitedAt())}
	switch resp.GetStatus() {
	case task.Status_CREATED:
		state.Status = StatusCreated
	case task.Status_RUNNING:
		state.Status = StatusRunning
	case task.Status_PAUSED, task.Status_PAUSING:
		state.Status = StatusPaused
	case task.Status_STOPPED:
		state.Status = StatusStopped
	}
	return state, nil
}

// Shutdown asks the shim to end if it has no containers left. One that is gone, or ends
// before it answers, has done so.
func (s *Shim) Shutdown(ctx context.Context, id string) error {
	err := s.call(ctx, call{op: processOp("shut down the shim of", id, ""), method: "Shutdown", req: &taskapi.ShutdownRequest{ID: id}, resp: &anypb.Any{}, limit: callTimeout})
	if isGone(err) {
		return nil
	}
	return err
}

func exitOf(code uint32, at *timestamppb.Timestamp) Exit {
	exit := Exit{Code: int(code)}
	if at.IsValid() {
		exit.At = at.AsTime()
	}
	return exit
}

func processOp(verb, id, execID string) string {
	if execID == "" {
		return verb + " container " + id
	}
	return verb + " process " + execID + " of container " + id
}
