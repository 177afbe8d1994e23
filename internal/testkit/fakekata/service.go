package fakekata

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"syscall"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	taskstatus "github.com/containerd/containerd/api/types/task"
	runtimeoptions "github.com/containerd/containerd/pkg/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// service is the task service of one pod. What it does not have, it answers with nothing.
type service struct {
	sandbox  string
	shutdown func()
	record   record

	mu     sync.Mutex
	config *Config
	tasks  map[key]*task
	specs  map[string]*rspec.Spec // of containers
}

// key names a task: exec is "" for a container's own process.
type key struct{ id, exec string }

var _ taskapi.TaskService = (*service)(nil)

func newService(sandbox string, shutdown func()) *service {
	return &service{sandbox: sandbox, shutdown: shutdown, tasks: map[key]*task{}, specs: map[string]*rspec.Spec{}}
}

// Create implements taskapi.TaskService.
func (s *service) Create(_ context.Context, req *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := Event{Event: "create", ID: req.ID, Sandbox: s.sandbox, Mounts: mountsOf(req.Rootfs)}
	err := s.create(req, &e)
	if err != nil {
		e.Event, e.Error = "refuse", err.Error()
	}
	if recordErr := s.record.add(e); recordErr != nil {
		return nil, status.Error(codes.Internal, recordErr.Error())
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.tasks[key{req.ID, ""}], s.specs[req.ID] = newTask(*e.Process, processCommand, req.Stdout, req.Stderr), e.Spec
	return &taskapi.CreateTaskResponse{Pid: uint32(os.Getpid())}, nil // Kata's is the hypervisor's
}

func mountsOf(rootfs []*types.Mount) []Mount {
	mounts := make([]Mount, 0, len(rootfs))
	for _, m := range rootfs {
		mounts = append(mounts, Mount{m.Type, m.Source, orEmpty(m.Options)})
	}
	return mounts
}

// create fills e with what came and what the agent would be told.
func (s *service) create(req *taskapi.CreateTaskRequest, e *Event) (err error) {
	if err := s.configure(req.Options); err != nil {
		return err
	}
	if e.Spec, err = readSpec(req.ID, req.Bundle); err != nil {
		return err
	}
	if e.Type, _, err = containerType(e.Spec); err != nil {
		return err
	}
	own := key{s.sandbox, ""}
	switch {
	case e.Type != typeContainer && s.tasks[own] != nil:
		return fmt.Errorf("cannot create another sandbox in sandbox: %s", s.sandbox)
	case e.Type == typeContainer && s.tasks[own] == nil:
		return fmt.Errorf("cannot start the container, since the sandbox hasn't been created")
	case s.tasks[key{req.ID, ""}] != nil:
		return fmt.Errorf("container %s is there", req.ID)
	}
	if e.Storage, err = storageOf(s.config.Flavour, req.ID, e.Spec, e.Mounts); err != nil {
		return err
	}
	process := pauseProcess()
	if e.Type != typeSandbox {
		if process, err = processOf(e.Spec.Process); err != nil {
			return err
		}
	}
	e.Process = &process
	return nil
}

// configure loads the configuration with the pod's first container, as Kata does.
func (s *service) configure(options *anypb.Any) error {
	if s.config != nil {
		return nil
	}
	path := ""
	if options != nil {
		v, err := typeurl.UnmarshalAny(options)
		if err != nil {
			return err
		}
		o, ok := v.(*runtimeoptions.Options)
		if !ok {
			return fmt.Errorf("the options are of type %T", v)
		}
		path = o.ConfigPath
	}
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	s.config = &cfg
	s.record.use(cfg.Record)
	return nil
}

// Exec implements taskapi.TaskService.
func (s *service) Exec(_ context.Context, req *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.find(req.ID, ""); err != nil {
		return nil, err
	}
	var spec rspec.Process
	if err := json.Unmarshal(req.Spec.GetValue(), &spec); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	process, err := processOf(&spec)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.tasks[key{req.ID, req.ExecID}] = newTask(process, execCommand, req.Stdout, req.Stderr)
	return &emptypb.Empty{}, s.record.add(Event{Event: "exec", ID: req.ID, Sandbox: s.sandbox, ExecID: req.ExecID, Process: &process})
}

// find returns a task; the caller holds the lock.
func (s *service) find(id, exec string) (*task, error) {
	if t := s.tasks[key{id, exec}]; t != nil {
		return t, nil
	}
	return nil, status.Errorf(codes.NotFound, "no process %q in container %s", exec, id)
}

// Start implements taskapi.TaskService.
func (s *service) Start(_ context.Context, req *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.find(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if t.cmd != nil || t.ended {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s was started", req.ID)
	}
	if err := t.start(); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := s.record.add(Event{Event: "start", ID: req.ID, Sandbox: s.sandbox, ExecID: req.ExecID}); err != nil {
		return nil, err
	}
	go func() {
		code := waited(t.cmd)
		s.mu.Lock()
		defer s.mu.Unlock()
		t.end(code)
		_ = s.record.add(Event{Event: "exit", ID: req.ID, Sandbox: s.sandbox, ExecID: req.ExecID, Status: code})
	}()
	return &taskapi.StartResponse{Pid: uint32(os.Getpid())}, nil
}

// Wait implements taskapi.TaskService.
func (s *service) Wait(ctx context.Context, req *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	s.mu.Lock()
	t, err := s.find(req.ID, req.ExecID)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-t.done:
		return &taskapi.WaitResponse{ExitStatus: t.status, ExitedAt: timestamppb.New(t.exitedAt)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Kill implements taskapi.TaskService. What has ended is not there to be killed, which is
// no error to Kata.
func (s *service) Kill(_ context.Context, req *taskapi.KillRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.find(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if req.Signal != 0 {
		if err := s.record.add(Event{Event: "kill", ID: req.ID, Sandbox: s.sandbox, ExecID: req.ExecID, Signal: req.Signal}); err != nil {
			return nil, err
		}
	}
	switch {
	case t.ended:
	case t.cmd == nil:
		t.end(uint32(killed))
	default:
		err = t.cmd.Process.Signal(syscall.Signal(req.Signal))
	}
	return &emptypb.Empty{}, err
}

// Delete implements taskapi.TaskService.
func (s *service) Delete(_ context.Context, req *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.find(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if t.cmd != nil && !t.ended {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s runs", req.ID)
	}
	t.end(uint32(killed)) // who waits for what never ran
	delete(s.tasks, key{req.ID, req.ExecID})
	if req.ExecID == "" {
		delete(s.specs, req.ID)
	}
	return &taskapi.DeleteResponse{Pid: uint32(os.Getpid()), ExitStatus: t.status, ExitedAt: timestamppb.New(t.exitedAt)},
		s.record.add(Event{Event: "delete", ID: req.ID, Sandbox: s.sandbox, ExecID: req.ExecID})
}

// State implements taskapi.TaskService.
func (s *service) State(_ context.Context, req *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.find(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	answer := &taskapi.StateResponse{
		ID: req.ID, ExecID: req.ExecID, Pid: uint32(os.Getpid()), Status: taskstatus.Status_CREATED,
		Stdout: t.stdout, Stderr: t.stderr, Terminal: t.process.Terminal,
	}
	switch {
	case t.ended:
		answer.Status, answer.ExitStatus, answer.ExitedAt = taskstatus.Status_STOPPED, t.status, timestamppb.New(t.exitedAt)
	case t.cmd != nil:
		answer.Status = taskstatus.Status_RUNNING
	}
	return answer, nil
}

// Shutdown implements taskapi.TaskService: the shim ends with its last container.
func (s *service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.specs) == 0 {
		s.shutdown()
	}
	return &emptypb.Empty{}, nil
}

// endAll ends every process that is left.
func (s *service) endAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if t.cmd != nil && !t.ended {
			_ = t.cmd.Process.Kill()
		}
	}
}
