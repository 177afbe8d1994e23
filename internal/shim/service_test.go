package shim

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/namespaces"
	runtimeoptions "github.com/containerd/containerd/pkg/runtimeoptions/v1"
	"github.com/containerd/containerd/protobuf"
	ptypes "github.com/containerd/containerd/protobuf/types"
	"github.com/containerd/typeurl/v2"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func mustPod(t *testing.T, dir, id string) pod.Pod {
	t.Helper()
	p, err := pod.New(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fakeTasks is the inner task service: containers that are there or not.
type fakeTasks struct {
	taskapi.TaskService
	mu     sync.Mutex
	status map[string]task.Status
	// createErr is Create's, of the OCI runtime's part or of what comes after it.
	createErr error
	execErr   error
	execed    *taskapi.ExecProcessRequest
	created   *taskapi.CreateTaskRequest
	shutdown  int
}

func (f *fakeTasks) Create(_ context.Context, req *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created = req
	if f.createErr != nil {
		return nil, f.createErr
	}
	f.status[req.ID] = task.Status_CREATED
	return &taskapi.CreateTaskResponse{Pid: 42}, nil
}

func (f *fakeTasks) State(_ context.Context, req *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, ok := f.status[req.ID]
	if !ok {
		return nil, status.Error(codes.NotFound, "container not created")
	}
	return &taskapi.StateResponse{Status: st}, nil
}

func (f *fakeTasks) Kill(_ context.Context, req *taskapi.KillRequest) (*ptypes.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st, ok := f.status[req.ID]; !ok || st == task.Status_STOPPED {
		return nil, status.Error(codes.NotFound, "process already finished")
	}
	f.status[req.ID] = task.Status_STOPPED
	return &ptypes.Empty{}, nil
}

func (f *fakeTasks) Wait(context.Context, *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	return &taskapi.WaitResponse{}, nil
}

func (f *fakeTasks) Delete(_ context.Context, req *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.status[req.ID]; !ok {
		return nil, status.Error(codes.NotFound, "container not created")
	}
	if req.ExecID != "" {
		return &taskapi.DeleteResponse{ExitStatus: 7}, nil
	}
	delete(f.status, req.ID)
	return &taskapi.DeleteResponse{ExitStatus: 7}, nil
}

func (f *fakeTasks) Exec(_ context.Context, req *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	f.execed = req
	return &ptypes.Empty{}, f.execErr
}

func (f *fakeTasks) Shutdown(context.Context, *taskapi.ShutdownRequest) (*ptypes.Empty, error) {
	f.shutdown++
	return &ptypes.Empty{}, nil
}

// fakePuller waits for its context or fails at once.
type fakePuller struct {
	err     error
	pulling chan layers.Request
}

func (f fakePuller) Run(ctx context.Context, req layers.Request) (layers.Image, error) {
	if f.err != nil {
		return layers.Image{}, f.err
	}
	f.pulling <- req
	<-ctx.Done()
	return layers.Image{}, errdefs.New(errdefs.Canceled, "pull", context.Cause(ctx))
}

type serviceRig struct {
	*service
	inner  *fakeTasks
	config string
}

func newServiceRig(t *testing.T, puller imagePuller) serviceRig {
	t.Helper()
	p := mustPod(t, t.TempDir(), "s1")
	if err := p.Create(); err != nil {
		t.Fatal(err)
	}
	inner := &fakeTasks{status: map[string]task.Status{}}
	st := newStore(p)
	st.kind = storeInMemory // a plain directory will do here
	return serviceRig{
		&service{TaskService: inner, pod: p, store: st, waits: newWaits(), puller: puller, containers: map[string]*container{}},
		inner, writeConfig(t, `runtime = "`+someRuntime+`"`),
	}
}

// request makes a bundle and the request that CRI-O would send for it.
func (r serviceRig) request(t *testing.T, id string, change func(*rspec.Spec)) *taskapi.CreateTaskRequest {
	t.Helper()
	spec := testSpec()
	change(spec)
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, configFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := typeurl.MarshalAny(&runtimeoptions.Options{ConfigPath: r.config})
	if err != nil {
		t.Fatal(err)
	}
	return &taskapi.CreateTaskRequest{
		ID: id, Bundle: bundle, Options: protobuf.FromAny(opts), Stdout: "/fifo",
		Rootfs: []*types.Mount{pullMount(t, "r.example/a@sha256:"+digestHex)},
	}
}

func asSandbox(spec *rspec.Spec) {
	spec.Annotations[annotations.CRIOContainerType] = annotations.ContainerTypeSandbox
	spec.Root.Path = "/pause"
}

func inNamespace(t *testing.T) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), "default")
}

func TestCreateSandboxUsesCRIOsRootfs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, fakePuller{err: errdefs.New(errdefs.Internal, "a sandbox must not pull", nil)})
	req := r.request(t, "s1", asSandbox)
	resp, err := r.Create(inNamespace(t), req)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.Pid).To(Equal(uint32(42)))
	g.Expect(r.inner.created.Rootfs).To(BeEmpty())
	spec, err := readSpec(req.Bundle)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(spec.Root.Path).To(Equal("/pause"))
	record, err := r.pod.Get("s1")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(record).To(And(HaveField("Sandbox", true), HaveField("Pid", uint32(42)), HaveField("RuntimeRoot", "/run/husk/runc/default"), HaveField("Stdout", "/fifo")))

	_, err = r.Create(inNamespace(t), req)
	g.Expect(status.Code(err)).To(Equal(codes.AlreadyExists))
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	refused := errdefs.New(errdefs.PolicyRefused, "pull r.example/a", nil)
	r := newServiceRig(t, fakePuller{err: refused})
	half := filepath.Join(r.store.images(), "tmp", "layer") // of a child that was killed
	g.Expect(os.MkdirAll(half, 0o700)).To(Succeed())
	req := r.request(t, "c1", func(*rspec.Spec) {})
	before, err := os.ReadFile(filepath.Join(req.Bundle, configFile))
	g.Expect(err).NotTo(HaveOccurred())
	_, err = r.Create(inNamespace(t), req)
	g.Expect(status.Code(err)).To(Equal(errdefs.PolicyRefused.Code()))
	g.Expect(status.Convert(err).Message()).To(ContainSubstring("r.example/a"))
	g.Expect(r.pod.List()).To(BeEmpty())
	g.Expect(r.containers).To(BeEmpty())
	g.Expect(r.inner.created).To(BeNil())
	g.Expect(half).NotTo(BeADirectory())
	g.Expect(os.ReadFile(filepath.Join(req.Bundle, configFile))).To(Equal(before))

	// CRI-O deletes what it failed to create, and asks the shim to end.
	_, err = r.Delete(inNamespace(t), &taskapi.DeleteRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spec   func(*rspec.Spec)
		change func(*taskapi.CreateTaskRequest)
		code   codes.Code
		text   string
	}{
		"a tag":          {func(s *rspec.Spec) { s.Annotations[annotations.ImageRef] = "r.example/a:1" }, nil, codes.InvalidArgument, "no digest"},
		"no volume":      {nil, func(r *taskapi.CreateTaskRequest) { r.Rootfs = nil }, codes.InvalidArgument, "runtime_pull_image"},
		"a damaged user": {func(s *rspec.Spec) { s.Annotations[annotations.User] = "{" }, nil, codes.InvalidArgument, ""},
		"a checkpoint":   {nil, func(r *taskapi.CreateTaskRequest) { r.Checkpoint = "/c" }, codes.Unimplemented, "checkpoint"},
		"wrong options":  {nil, func(r *taskapi.CreateTaskRequest) { r.Options = &ptypes.Any{TypeUrl: "x"} }, codes.InvalidArgument, "options"},
		"no bundle":      {nil, func(r *taskapi.CreateTaskRequest) { r.Bundle = "/no/such" }, codes.Internal, "/no/such"},
		"a bad ID":       {nil, func(r *taskapi.CreateTaskRequest) { r.ID = "../c1" }, codes.InvalidArgument, "../c1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := newServiceRig(t, fakePuller{err: errdefs.New(errdefs.Internal, "too far", nil)})
			change := tc.spec
			if change == nil {
				change = func(*rspec.Spec) {}
			}
			req := r.request(t, "c1", change)
			if tc.change != nil {
				tc.change(req)
			}
			_, err := r.Create(inNamespace(t), req)
			g.Expect(status.Code(err)).To(Equal(tc.code), "%v", err)
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(r.pod.List()).To(BeEmpty())
		})
	}
}

// CRI-O deletes a container whose creation takes longer than four minutes, and then
// waits for the creation to end.
func TestDeleteEndsCreate(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	puller := fakePuller{pulling: make(chan layers.Request, 1)}
	r := newServiceRig(t, puller)
	req := r.request(t, "c1", func(s *rspec.Spec) {
		s.Linux.CgroupsPath = "/pod/crio-c1"
		s.Linux.Namespaces = []rspec.LinuxNamespace{{Type: rspec.NetworkNamespace, Path: "/ns"}}
	})
	done := make(chan error, 1)
	ctx := inNamespace(t)
	go func() {
		_, err := r.Create(ctx, req)
		done <- err
	}()
	var pull layers.Request
	g.Eventually(puller.pulling).Should(Receive(&pull))
	g.Expect(pull).To(And(HaveField("Name", "c1"), HaveField("Place", sandbox.Place{NetNS: "/ns", Cgroup: "/pod"})))
	g.Expect(pull.Pull.Reference).To(Equal("r.example/a@sha256:" + digestHex))
	g.Expect(r.pod.List()).To(HaveLen(1), "whoever cleans up after a killed shim must know of it")

	_, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: "c1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Eventually(done).Should(Receive(&err))
	g.Expect(status.Code(err)).To(Equal(codes.Canceled))
	g.Expect(r.pod.List()).To(BeEmpty())
}

func TestExecRunsAsTheContainersUser(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, nil)
	created := make(chan struct{})
	close(created)
	r.containers["c1"] = &container{created: created, identity: &bundlegen.Identity{UID: 1000, GID: 5, Groups: []uint32{5, 7}, Home: "/home/web"}}
	r.containers["other"] = &container{created: created}
	exec := func(id string) rspec.Process {
		value, err := json.Marshal(&rspec.Process{Args: []string{"id"}, User: rspec.User{UID: 0}, Env: []string{"A=b"}})
		g.Expect(err).NotTo(HaveOccurred())
		_, err = r.Exec(t.Context(), &taskapi.ExecProcessRequest{ID: id, ExecID: "e", Spec: &ptypes.Any{TypeUrl: "u", Value: value}})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.inner.execed.Spec.TypeUrl).To(Equal("u"))
		var p rspec.Process
		g.Expect(json.Unmarshal(r.inner.execed.Spec.Value, &p)).To(Succeed())
		return p
	}
	p := exec("c1")
	g.Expect(p.User).To(Equal(rspec.User{UID: 1000, GID: 5, AdditionalGids: []uint32{5, 7}}))
	g.Expect(p.Env).To(ConsistOf("A=b", "HOME=/home/web"))
	g.Expect(p.Args).To(Equal([]string{"id"}))
	g.Expect(exec("other").User).To(Equal(rspec.User{}), "no identity: the caller's")

	_, err := r.Exec(t.Context(), &taskapi.ExecProcessRequest{ID: "c1", Spec: &ptypes.Any{Value: []byte("{")}})
	g.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
}

func TestExecWaitsUntilItIsKnownAsWhom(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, nil)
	r.containers["c1"] = &container{created: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := r.Exec(ctx, &taskapi.ExecProcessRequest{ID: "c1"})
	g.Expect(status.Code(err)).To(Equal(codes.Canceled))
	g.Expect(r.inner.execed).To(BeNil())
}

func TestKillOfAnExitedContainer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, nil)
	r.inner.status["c1"] = task.Status_STOPPED
	_, err := r.Kill(t.Context(), &taskapi.KillRequest{ID: "c1", Signal: 15})
	g.Expect(err).NotTo(HaveOccurred(), "it is as dead as asked for")
	_, err = r.Kill(t.Context(), &taskapi.KillRequest{ID: "c1"})
	g.Expect(status.Code(err)).To(Equal(codes.NotFound), "signal 0 asks whether it lives")
	_, err = r.Kill(t.Context(), &taskapi.KillRequest{ID: "c1", ExecID: "e", Signal: 9})
	g.Expect(status.Code(err)).To(Equal(codes.NotFound))
	_, err = r.Kill(t.Context(), &taskapi.KillRequest{ID: "unknown", Signal: 9})
	g.Expect(status.Code(err)).To(Equal(codes.NotFound))
}

func TestShutdownRemovesLostContainers(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, nil)
	ctx := inNamespace(t)
	for _, id := range []string{"s1", "lost"} {
		_, err := r.Create(ctx, r.request(t, id, asSandbox))
		g.Expect(err).NotTo(HaveOccurred())
	}
	r.containers["lost"].sandbox = false
	_, err := r.Shutdown(ctx, &taskapi.ShutdownRequest{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r.inner.status).To(HaveKey("lost"), "the pod is not over")
	_, err = r.Delete(ctx, &taskapi.DeleteRequest{ID: "s1"})
	g.Expect(err).NotTo(HaveOccurred())
	_, err = r.Shutdown(ctx, &taskapi.ShutdownRequest{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r.inner.status).To(BeEmpty())
	g.Expect(r.pod.List()).To(BeEmpty())
}

func TestExitsAreAnnouncedOnlyToThoseWhoDoNotWait(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, nil)
	dir := t.TempDir()
	sink := &eventSink{pod: r.pod, waits: r.waits}
	exit := func(id string) {
		g.Expect(sink.Publish(t.Context(), "", &eventsapi.TaskExit{
			ContainerID: id, ID: id, ExitStatus: 3, ExitedAt: protobuf.ToTimestamp(time.Now()),
		})).To(Succeed())
	}
	for _, id := range []string{"waited", "left", "exec", "oom"} {
		g.Expect(r.pod.Put(pod.Record{ID: id, Bundle: dir, ExitsDir: dir})).To(Succeed())
	}
	r.containers["waited"], r.containers["left"] = &container{}, &container{}
	_, err := r.Wait(t.Context(), &taskapi.WaitRequest{ID: "waited"})
	g.Expect(err).NotTo(HaveOccurred())
	exit("waited")
	g.Expect(filepath.Join(dir, "waited")).NotTo(BeAnExistingFile())
	g.Expect(r.pod.Get("waited")).To(HaveField("ExitStatus", uint32(3)))

	ctx, cancel := context.WithCancel(t.Context())
	r.waits.begin(ctx, "left") // CRI-O waits, and is restarted
	cancel()
	g.Eventually(func() bool { return r.waits.has("left") }).Should(BeFalse())
	exit("left")
	g.Expect(filepath.Join(dir, "left")).To(BeAnExistingFile())

	g.Expect(sink.Publish(t.Context(), "", &eventsapi.TaskExit{ContainerID: "exec", ID: "e1"})).To(Succeed())
	g.Expect(filepath.Join(dir, "exec")).NotTo(BeAnExistingFile(), "not the container's first process")

	exit("unknown")
	g.Expect(sink.Publish(t.Context(), "", &eventsapi.TaskOOM{ContainerID: "oom"})).To(Succeed())
	g.Expect(filepath.Join(dir, oomFile)).To(BeAnExistingFile())
}
