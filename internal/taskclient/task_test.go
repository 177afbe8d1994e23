package taskclient

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/namespaces"
	runtimeoptions "github.com/containerd/containerd/pkg/runtimeoptions/v1"
	"github.com/containerd/containerd/protobuf"
	ptypes "github.com/containerd/containerd/protobuf/types"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/katavolume"
)

// fakeTask is the generated task service; its methods keep what they were asked.
type fakeTask struct {
	taskapi.TaskService
	asked     chan proto.Message
	namespace chan string
	err       error
	// ended is told when the server sees the end of a call that waits.
	ended chan struct{}
}

func (f *fakeTask) ask(ctx context.Context, m proto.Message) error {
	ns, _ := ttrpc.GetMetadataValue(ctx, namespaces.TTRPCHeader)
	f.asked <- m
	f.namespace <- ns
	return f.err
}

var exitedAt = time.Unix(1700000000, 0).UTC()

func (f *fakeTask) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	return &taskapi.CreateTaskResponse{Pid: 11}, f.ask(ctx, r)
}

func (f *fakeTask) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return &taskapi.StartResponse{Pid: 12}, f.ask(ctx, r)
}

func (f *fakeTask) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, f.ask(ctx, r)
}

func (f *fakeTask) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	if r.ID == "endless" {
		f.asked <- r
		<-ctx.Done()
		close(f.ended)
		return nil, ctx.Err()
	}
	return &taskapi.WaitResponse{ExitStatus: 255, ExitedAt: timestamppb.New(exitedAt)}, f.ask(ctx, r)
}

func (f *fakeTask) Kill(ctx context.Context, r *taskapi.KillRequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, f.ask(ctx, r)
}

func (f *fakeTask) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	return &taskapi.DeleteResponse{ExitStatus: 2}, f.ask(ctx, r) // and says not when
}

func (f *fakeTask) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, f.ask(ctx, r)
}

func (f *fakeTask) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, f.ask(ctx, r)
}

func (f *fakeTask) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	return &taskapi.StateResponse{Pid: 13, Status: task.Status_PAUSED}, f.ask(ctx, r)
}

func (f *fakeTask) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, f.ask(ctx, r)
}

// serve serves the generated service with the real server of ttrpc.
func serve(t *testing.T) (*fakeTask, *Shim) {
	t.Helper()
	f := &fakeTask{asked: make(chan proto.Message, 1), namespace: make(chan string, 1), ended: make(chan struct{})}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	taskapi.RegisterTaskService(server, f)
	l, shim := listen(t)
	go func() { _ = server.Serve(context.WithoutCancel(t.Context()), l) }()
	t.Cleanup(func() { _ = server.Close() })
	return f, shim
}

// listen makes a socket and what speaks to it.
func listen(t *testing.T) (net.Listener, *Shim) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	shim, err := Dial(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	shim.redo = 3 * redoPause / 2
	t.Cleanup(func() { _, _ = l.Close(), shim.Close() })
	return l, shim
}

func mustAny(t *testing.T, v any) *ptypes.Any {
	t.Helper()
	a, err := typeurl.MarshalAny(v)
	if err != nil {
		t.Fatal(err)
	}
	return protobuf.FromAny(a)
}

// registerProcess gives the type the name that CRI-O does (newRuntimeVM).
func registerProcess() {
	typeurl.Register(&rspec.Process{}, "types.containerd.io", "opencontainers/runtime-spec", "1", "Process")
}

func TestRequestsAreCRIOs(t *testing.T) {
	t.Parallel()
	registerProcess()
	volume := &katavolume.Volume{
		VolumeType: katavolume.TypeImageGuestPull, Source: "r.example/a@sha256:" + digestHex, FSType: "overlay_fs",
		ImagePull: &katavolume.Metadata{Metadata: map[string]string{"io.container.manager": "cri-o"}},
	}
	volumeJSON := `{"volume_type":"image_guest_pull","source":"r.example/a@sha256:` + digestHex +
		`","fs_type":"overlay_fs","image_pull":{"metadata":{"io.container.manager":"cri-o"}}}`
	process := &rspec.Process{Args: []string{"a"}, Cwd: "/"}
	streams := IO{Stdin: "i", Stdout: "o", Stderr: "e"}
	for name, tc := range map[string]struct {
		call func(ctx context.Context, s *Shim) (any, error)
		want proto.Message
		got  any
	}{
		"create": {
			func(ctx context.Context, s *Shim) (any, error) {
				return s.Create(ctx, CreateRequest{ID: "c", Bundle: "/b", IO: streams, ConfigPath: "/etc/kata.toml", GuestPull: volume})
			},
			&taskapi.CreateTaskRequest{
				ID: "c", Bundle: "/b", Stdin: "i", Stdout: "o", Stderr: "e",
				Options: mustAny(t, &runtimeoptions.Options{ConfigPath: "/etc/kata.toml"}),
				Rootfs: []*types.Mount{{
					Type: "fuse.nydus-overlayfs", Options: []string{"io.katacontainers.volume=" + base64.StdEncoding.EncodeToString([]byte(volumeJSON))},
				}},
			}, 11,
		},
		"create with a terminal and nothing else": {
			func(ctx context.Context, s *Shim) (any, error) {
				return s.Create(ctx, CreateRequest{ID: "c", Bundle: "/b", Terminal: true})
			},
			&taskapi.CreateTaskRequest{ID: "c", Bundle: "/b", Terminal: true}, 11,
		},
		"start": {
			func(ctx context.Context, s *Shim) (any, error) { return s.Start(ctx, "c", "e") },
			&taskapi.StartRequest{ID: "c", ExecID: "e"}, 12,
		},
		"exec": {
			func(ctx context.Context, s *Shim) (any, error) {
				return nil, s.Exec(ctx, ExecRequest{ID: "c", ExecID: "e", Process: process, IO: streams, Terminal: true})
			},
			&taskapi.ExecProcessRequest{ID: "c", ExecID: "e", Terminal: true, Stdin: "i", Stdout: "o", Stderr: "e", Spec: mustAny(t, process)}, nil,
		},
		"wait": {
			func(ctx context.Context, s *Shim) (any, error) { return s.Wait(ctx, "c", "e") },
			&taskapi.WaitRequest{ID: "c", ExecID: "e"}, Exit{Code: 255, At: exitedAt},
		},
		"kill": {
			func(ctx context.Context, s *Shim) (any, error) {
				return nil, s.Kill(ctx, "c", "e", syscall.SIGTERM, true)
			},
			&taskapi.KillRequest{ID: "c", ExecID: "e", Signal: 15, All: true}, nil,
		},
		"delete": {
			func(ctx context.Context, s *Shim) (any, error) { return s.Delete(ctx, "c", "e") },
			&taskapi.DeleteRequest{ID: "c", ExecID: "e"}, Exit{Code: 2},
		},
		"resize": {
			func(ctx context.Context, s *Shim) (any, error) { return nil, s.Resize(ctx, "c", "e", 80, 24) },
			&taskapi.ResizePtyRequest{ID: "c", ExecID: "e", Width: 80, Height: 24}, nil,
		},
		"close": {
			func(ctx context.Context, s *Shim) (any, error) { return nil, s.CloseStdin(ctx, "c", "e") },
			&taskapi.CloseIORequest{ID: "c", ExecID: "e", Stdin: true}, nil,
		},
		"state": {
			func(ctx context.Context, s *Shim) (any, error) { return s.State(ctx, "c") },
			&taskapi.StateRequest{ID: "c"}, State{Status: StatusPaused, Pid: 13},
		},
		"shutdown": {
			func(ctx context.Context, s *Shim) (any, error) { return nil, s.Shutdown(ctx, "c") },
			&taskapi.ShutdownRequest{ID: "c"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			f, shim := serve(t)
			got, err := tc.call(t.Context(), shim)
			g.Expect(err).NotTo(HaveOccurred())
			if tc.got != nil {
				g.Expect(got).To(Equal(tc.got))
			}
			asked := <-f.asked
			g.Expect(proto.Equal(asked, tc.want)).To(BeTrue(), "%v, not %v", asked, tc.want)
			g.Expect(<-f.namespace).To(Equal("default"))
		})
	}
}

func TestRequestsThatAreRefusedHere(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, shim := serve(t)
	_, err := shim.Create(t.Context(), CreateRequest{ID: "c", GuestPull: &katavolume.Volume{VolumeType: katavolume.TypeImageGuestPull}})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	for _, r := range []ExecRequest{{ID: "c", ExecID: "e"}, {ID: "c", Process: &rspec.Process{}}} {
		g.Expect(errdefs.KindOf(shim.Exec(t.Context(), r))).To(Equal(errdefs.InvalidArgument))
	}
	huge := &rspec.Process{Env: []string{strings.Repeat("x", maxRequest)}}
	err = shim.Exec(t.Context(), ExecRequest{ID: "c", ExecID: "e", Process: huge})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	g.Expect(f.asked).NotTo(Receive())
}

func TestErrorsOfAShim(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		kind errdefs.Kind
		text string
	}{
		"not found":       {status.Error(codes.NotFound, "no such process"), errdefs.NotFound, "no such process"},
		"exists":          {status.Error(codes.AlreadyExists, "twice"), errdefs.InUse, "twice"},
		"state":           {status.Error(codes.FailedPrecondition, "it runs"), errdefs.InUse, "it runs"},
		"argument":        {status.Error(codes.InvalidArgument, "x"), errdefs.InvalidArgument, "x"},
		"unimplemented":   {status.Error(codes.Unimplemented, "x"), errdefs.Unsupported, "x"},
		"no code":         {json.Unmarshal([]byte("{"), &struct{}{}), errdefs.Internal, "unexpected end of JSON input"},
		"a code of ours":  {errdefs.ToGRPC(errdefs.Newf(errdefs.KeyUnavailable, "pull", "no key")), errdefs.KeyUnavailable, "pull: no key"},
		"a word":          {errdefs.ToGRPC(errdefs.Newf(errdefs.PolicyRefused, "pull", "no")), errdefs.PolicyRefused, "start container c: pull: no"},
		"the other word":  {errdefs.ToGRPC(errdefs.Newf(errdefs.RegistryUnavailable, "pull", "no")), errdefs.RegistryUnavailable, "start container c: pull: no"},
		"a code of none":  {status.Error(codes.Code(99), "x"), errdefs.Internal, "x"},
		"escapes":         {status.Error(codes.Internal, "a\x1b[31m\nb"), errdefs.Internal, "a [31m b"},
		"what is endless": {status.Error(codes.Internal, strings.Repeat("x", 1<<19)), errdefs.Internal, strings.Repeat("x", maxText) + "..."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			f, shim := serve(t)
			f.err = tc.err
			_, err := shim.Start(t.Context(), "c", "")
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(err.Error()).To(And(HavePrefix("start container c: "), HaveSuffix(tc.text)))
		})
	}
}

// The end of a Wait's context is the end of the call in the shim too.
func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, shim := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := shim.Wait(ctx, "endless", "")
		result <- err
	}()
	g.Eventually(f.asked, 5*time.Second).Should(Receive())
	cancel()
	var err error
	g.Eventually(result, 5*time.Second).Should(Receive(&err))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
	g.Eventually(f.ended, 5*time.Second).Should(BeClosed())
}

func TestCloseEndsCalls(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, shim := serve(t)
	result := make(chan error, 1)
	go func() {
		_, err := shim.Wait(t.Context(), "endless", "")
		result <- err
	}()
	g.Eventually(f.asked, 5*time.Second).Should(Receive())
	g.Expect(shim.Close()).To(Succeed())
	var err error
	g.Eventually(result, 5*time.Second).Should(Receive(&err))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
	_, err = shim.State(t.Context(), "c")
	g.Expect(err).To(MatchError(ContainSubstring("closed here")))
	g.Expect(shim.Close()).To(Succeed())
}
