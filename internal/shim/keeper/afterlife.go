package keeper

import (
	"context"
	"fmt"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/protobuf"
	ptypes "github.com/containerd/containerd/protobuf/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// afterlife answers CRI-O for the containers of a shim that is gone: they have
// exited, can be stopped again, and can be deleted. Whatever would need the
// container to run is refused with a reason.
type afterlife struct {
	pod pod.Pod
	// died is when the shim did; empty is called when the last container is deleted
	// and CRI-O has said that it needs the shim no longer.
	died  time.Time
	empty func()
	mu    sync.Mutex
}

var _ taskapi.TaskService = (*afterlife)(nil)

// record returns what is known of a container, as one that has exited.
func (a *afterlife) record(id string) (pod.Record, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, err := a.pod.Get(id)
	if err != nil {
		return pod.Record{}, errdefs.ToGRPC(err)
	}
	return r.Exited(a.died, pod.KilledStatus), nil
}

func (a *afterlife) refuse(id string) error {
	return status.Error(codes.FailedPrecondition, fmt.Sprintf("container %s: the shim of pod %s was killed, and the pod with it", id, a.pod.ID()))
}

// State reports every container as stopped.
func (a *afterlife) State(_ context.Context, req *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	r, err := a.record(req.ID)
	if err != nil {
		return nil, err
	}
	return &taskapi.StateResponse{
		ID: r.ID, Bundle: r.Bundle, Pid: r.Pid, Status: task.Status_STOPPED,
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		ExitStatus: r.ExitStatus, ExitedAt: protobuf.ToTimestamp(r.ExitedAt), ExecID: req.ExecID,
	}, nil
}

// Wait returns at once: a process that was executed died as its container did.
func (a *afterlife) Wait(_ context.Context, req *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	r, err := a.record(req.ID)
	if err != nil {
		return nil, err
	}
	if req.ExecID != "" {
		return &taskapi.WaitResponse{ExitStatus: pod.KilledStatus, ExitedAt: protobuf.ToTimestamp(a.died)}, nil
	}
	return &taskapi.WaitResponse{ExitStatus: r.ExitStatus, ExitedAt: protobuf.ToTimestamp(r.ExitedAt)}, nil
}

// Kill succeeds: the process is as dead as asked for, and CRI-O takes a NotFound
// here for a failure to stop the container. Signal 0 asks whether it lives.
func (a *afterlife) Kill(_ context.Context, req *taskapi.KillRequest) (*ptypes.Empty, error) {
	if _, err := a.record(req.ID); err != nil {
		return nil, err
	}
	if req.Signal == 0 {
		return nil, status.Error(codes.NotFound, "container "+req.ID+" has exited")
	}
	return &ptypes.Empty{}, nil
}

// Delete forgets a container, or an executed process of one. A container that is
// forgotten already is deleted: CRI-O repeats a removal that it did not finish.
func (a *afterlife) Delete(_ context.Context, req *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	r, err := a.record(req.ID)
	if status.Code(err) == codes.NotFound {
		return &taskapi.DeleteResponse{ExitStatus: pod.KilledStatus, ExitedAt: protobuf.ToTimestamp(a.died)}, nil
	}
	if err != nil {
		return nil, err
	}
	if req.ExecID == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err := a.pod.Drop(req.ID); err != nil {
			return nil, errdefs.ToGRPC(err)
		}
	}
	return &taskapi.DeleteResponse{Pid: r.Pid, ExitStatus: r.ExitStatus, ExitedAt: protobuf.ToTimestamp(r.ExitedAt)}, nil
}

// Shutdown ends the keeper once no container is left.
func (a *afterlife) Shutdown(context.Context, *taskapi.ShutdownRequest) (*ptypes.Empty, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	records, err := a.pod.List()
	if err != nil {
		return nil, errdefs.ToGRPC(err)
	}
	if len(records) == 0 {
		a.empty()
	}
	return &ptypes.Empty{}, nil
}

// Connect answers without a process.
func (a *afterlife) Connect(context.Context, *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{}, nil
}

// CloseIO and ResizePty succeed, as they do for a process that has just ended.
func (a *afterlife) CloseIO(context.Context, *taskapi.CloseIORequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, nil
}

// ResizePty is like CloseIO.
func (a *afterlife) ResizePty(context.Context, *taskapi.ResizePtyRequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, nil
}

// Create is refused, as is all that follows.
func (a *afterlife) Create(_ context.Context, req *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	return nil, a.refuse(req.ID)
}

// Start is refused.
func (a *afterlife) Start(_ context.Context, req *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return nil, a.refuse(req.ID)
}

// Exec is refused.
func (a *afterlife) Exec(_ context.Context, req *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	return nil, a.refuse(req.ID)
}

// Pids is refused.
func (a *afterlife) Pids(_ context.Context, req *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	return nil, a.refuse(req.ID)
}

// Pause is refused.
func (a *afterlife) Pause(_ context.Context, req *taskapi.PauseRequest) (*ptypes.Empty, error) {
	return nil, a.refuse(req.ID)
}

// Resume is refused.
func (a *afterlife) Resume(_ context.Context, req *taskapi.ResumeRequest) (*ptypes.Empty, error) {
	return nil, a.refuse(req.ID)
}

// Checkpoint is refused.
func (a *afterlife) Checkpoint(_ context.Context, req *taskapi.CheckpointTaskRequest) (*ptypes.Empty, error) {
	return nil, a.refuse(req.ID)
}

// Update is refused.
func (a *afterlife) Update(_ context.Context, req *taskapi.UpdateTaskRequest) (*ptypes.Empty, error) {
	return nil, a.refuse(req.ID)
}

// Stats is refused.
func (a *afterlife) Stats(_ context.Context, req *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	return nil, a.refuse(req.ID)
}
