package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/task"
	ptypes "github.com/containerd/containerd/protobuf/types"
	"github.com/containerd/log"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// imagePuller pulls an image inside the pod's sandbox.
type imagePuller interface {
	Run(ctx context.Context, req layers.Request) (layers.Image, error)
}

var _ imagePuller = layers.Runner{}

// service is the task service of a pod. The methods it does not have are those of
// containerd's runc task service.
type service struct {
	taskapi.TaskService
	pod   pod.Pod
	store *store
	waits *waits
	// runtimes are the OCI runtimes that the pod has used.
	runtimes runtimes
	puller   imagePuller
	// images is what is pulled, and where.
	images images

	mu         sync.Mutex
	containers map[string]*container
	// over is set once the pod's sandbox is deleted.
	over bool
}

// container is what the service knows of a container beyond the task service. Once
// created is closed the rest does not change.
type container struct {
	sandbox bool
	// abort ends a Create that is at work; created is closed when it has ended.
	abort   context.CancelCauseFunc
	created chan struct{}
	// left is set where the creation failed and the OCI runtime could not delete what it
	// had made by then.
	left bool
	// identity is whom its processes run as; nil leaves it to the caller.
	identity *bundlegen.Identity
	// outputs are the FIFOs of its execs.
	outputs outputs
	// images are those that it is on, guarded by service.mu.
	images []pod.Image
}

// lostTimeout is how long a container that CRI-O has lost sight of may take to die.
const lostTimeout = 30 * time.Second

var errDeleted = errors.New("the container was deleted while it was being created")

// Create makes the container's root file system, unless it is the pod's sandbox, and
// then the container.
func (s *service) Create(ctx context.Context, req *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	c := &container{abort: abort, created: make(chan struct{})}
	s.mu.Lock()
	_, exists := s.containers[req.ID]
	if !exists {
		s.containers[req.ID] = c
	}
	s.mu.Unlock()
	if exists {
		return nil, status.Error(codes.AlreadyExists, "container "+req.ID+" exists")
	}
	resp, err := s.create(ctx, req, c)
	if err != nil {
		s.mu.Lock()
		if !c.left {
			delete(s.containers, req.ID)
		} else if c.sandbox {
			s.over = true // it has never begun
		}
		s.mu.Unlock()
		log.G(ctx).WithError(err).WithField("container", req.ID).Error("create failed")
	}
	close(c.created)
	return resp, errdefs.ToGRPC(err)
}

func (s *service) find(id string) *container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.containers[id]
}

// settled waits until the container is created, or its creation has failed.
func (c *container) settled(ctx context.Context) error {
	select {
	case <-c.created:
		return nil
	case <-ctx.Done():
		return errdefs.ToGRPC(ctx.Err())
	}
}

// Exec runs a process as the container's user: CRI-O asks for the user in its own
// spec, which is a placeholder where only the image could say whom a name means.
func (s *service) Exec(ctx context.Context, req *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	c := s.find(req.ID)
	if c == nil {
		return s.TaskService.Exec(ctx, req)
	}
	// Before that it is not known as whom.
	if err := c.settled(ctx); err != nil {
		return nil, err
	}
	if err := c.identify(req); err != nil {
		return nil, err
	}
	resp, err := s.TaskService.Exec(ctx, req)
	if err == nil {
		c.outputs.hold(ctx, req.ExecID, req.Stdout, req.Stderr)
	}
	return resp, err
}

// identify makes an exec run as the container's user.
func (c *container) identify(req *taskapi.ExecProcessRequest) error {
	if c.identity == nil {
		return nil
	}
	var process rspec.Process
	if err := json.Unmarshal(req.Spec.GetValue(), &process); err != nil {
		return status.Error(codes.InvalidArgument, fmt.Sprintf("exec in container %s: %v", req.ID, err))
	}
	c.identity.Apply(&process)
	value, err := json.Marshal(&process)
	if err != nil {
		return errdefs.ToGRPC(fmt.Errorf("exec in container %s: %w", req.ID, err))
	}
	req.Spec = &ptypes.Any{TypeUrl: req.Spec.TypeUrl, Value: value}
	return nil
}

// Wait is noted: an exit that CRI-O does not wait for is announced.
func (s *service) Wait(ctx context.Context, req *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	c := s.find(req.ID)
	if c == nil {
		return s.TaskService.Wait(ctx, req)
	}
	if req.ExecID != "" {
		resp, err := s.TaskService.Wait(ctx, req)
		if err == nil {
			c.outputs.expire(req.ExecID, unclaimedTimeout)
		}
		return resp, err
	}
	answered := s.waits.begin(ctx, req.ID)
	resp, err := s.TaskService.Wait(ctx, req)
	if err == nil {
		answered()
	}
	return resp, err
}

// Kill of a container that has exited succeeds, since CRI-O takes NotFound for a
// failure to stop it. Signal 0 asks whether it lives and gets the plain answer.
func (s *service) Kill(ctx context.Context, req *taskapi.KillRequest) (*ptypes.Empty, error) {
	resp, err := s.TaskService.Kill(ctx, req)
	if status.Code(err) != codes.NotFound || req.Signal == 0 || req.ExecID != "" {
		return resp, err
	}
	state, stateErr := s.State(ctx, &taskapi.StateRequest{ID: req.ID})
	if stateErr == nil && state.Status == task.Status_STOPPED {
		return &ptypes.Empty{}, nil
	}
	return nil, err
}

// Delete removes a container with what it wrote, or ends its creation. One that is
// not there is deleted: CRI-O repeats a removal that it did not finish.
func (s *service) Delete(ctx context.Context, req *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	if req.ExecID != "" {
		return s.deleteExec(ctx, req)
	}
	if c := s.find(req.ID); c != nil {
		c.abort(errDeleted)
		if err := c.settled(ctx); err != nil {
			return nil, err
		}
		if c.left {
			return s.deleteLeft(ctx, req.ID)
		}
	}
	resp, err := s.TaskService.Delete(ctx, req)
	if status.Code(err) == codes.NotFound {
		resp, err = &taskapi.DeleteResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.forget(req.ID); err != nil {
		return nil, errdefs.ToGRPC(err)
	}
	return resp, nil
}

// deleteLeft removes what a failed creation has left: the task service does not know it.
func (s *service) deleteLeft(ctx context.Context, id string) (*taskapi.DeleteResponse, error) {
	r, err := s.pod.Get(id)
	if err == nil {
		err = discard(ctx, r)
	}
	if err == nil {
		err = s.forget(id)
	}
	if err != nil {
		return nil, errdefs.ToGRPC(err)
	}
	return &taskapi.DeleteResponse{}, nil
}

// deleteExec removes an exec once CRI-O has its output. containerd's Delete waits until
// all of it is in the FIFOs.
func (s *service) deleteExec(ctx context.Context, req *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.TaskService.Delete(ctx, req)
	c := s.find(req.ID)
	if err != nil || c == nil {
		return resp, err
	}
	if fifos := c.outputs.take(req.ExecID); !drain(ctx, fifos, drainTimeout) {
		log.G(ctx).WithField("container", req.ID).WithField("exec", req.ExecID).Warn("output of an exec was not read")
	}
	return resp, nil
}

// Checkpoint is refused: what it would write down is the memory of a container whose
// image the host must not see.
func (s *service) Checkpoint(_ context.Context, req *taskapi.CheckpointTaskRequest) (*ptypes.Empty, error) {
	return nil, errdefs.ToGRPC(errdefs.Newf(errdefs.Unsupported, "checkpoint container "+req.ID, "its memory must not be written to the host"))
}

// forget drops what the service holds of a container that is no more.
func (s *service) forget(id string) error {
	if err := pod.ValidID(id); err != nil {
		return err
	}
	if err := errors.Join(s.store.remove(id), s.pod.Drop(id)); err != nil {
		return err
	}
	s.waits.forget(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		c.outputs.release()
		s.over = s.over || c.sandbox
	}
	delete(s.containers, id)
	return nil
}

// Shutdown ends the shim when the pod has no containers. Without its sandbox a pod
// is over: containers that CRI-O has lost sight of, because it died while it created
// them, go with it.
func (s *service) Shutdown(ctx context.Context, req *taskapi.ShutdownRequest) (*ptypes.Empty, error) {
	for _, id := range s.lost() {
		if err := s.destroy(ctx, id); err != nil {
			log.G(ctx).WithError(err).WithField("container", id).Error("remove a lost container")
		}
	}
	return s.TaskService.Shutdown(ctx, req)
}

// lost returns the containers of a pod that is over.
func (s *service) lost() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		return nil
	}
	return slices.Collect(maps.Keys(s.containers))
}

// destroy kills and deletes a container. What does not die, because it hangs in the kernel,
// is left: CRI-O waits for the answer to Shutdown without an end of its own.
func (s *service) destroy(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, lostTimeout)
	defer cancel()
	if _, err := s.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(unix.SIGKILL), All: true}); err == nil {
		exited := make(chan error, 1)
		go func() { // the task service does not look at ctx
			_, err := s.Wait(ctx, &taskapi.WaitRequest{ID: id})
			exited <- err
		}()
		select {
		case err := <-exited:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of container %s: %w", id, ctx.Err())
		}
	}
	_, err := s.Delete(ctx, &taskapi.DeleteRequest{ID: id})
	return err
}
