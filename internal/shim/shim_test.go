package shim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	runtimeoptions "github.com/containerd/containerd/pkg/runtimeoptions/v1"
	"github.com/containerd/containerd/protobuf"
	ptypes "github.com/containerd/containerd/protobuf/types"
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/keeper"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/layerpull"
)

const (
	// binaryEnv makes the test binary the shim's binary, in all its processes.
	binaryEnv = "HUSK_TEST_BINARY"
	busybox   = "/bin/busybox"
)

func TestMain(m *testing.M) {
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	if os.Getenv(binaryEnv) != "" || os.Getenv(daemonEnv) != "" || command == keeper.Command || command == layers.ChildCommand {
		os.Exit(Main(context.Background(), os.Args, "1.2.3", busyboxPuller{}))
	}
	os.Exit(m.Run())
}

func startOpts() containerdshim.StartOpts { return containerdshim.StartOpts{} }

// busyboxPuller makes an image of two layers: busybox, and a passwd file.
type busyboxPuller struct{}

func (busyboxPuller) Pull(ctx context.Context, req layers.PullRequest, progress func(layerpull.Progress)) (layers.Image, error) {
	if err := special(ctx, req, progress); err != nil {
		return layers.Image{}, err
	}
	var dirs []string
	for i, files := range []map[string]string{
		{"bin/sh": "", "bin/id": "", "bin/sleep": "", "bin/cat": "", "bin/echo": ""},
		{"etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:1234:2345::/home/web:/bin/sh\n", "etc/secret": "layer content"},
	} {
		layer := filepath.Join(req.StoreDir, strconv.Itoa(i))
		dirs = append(dirs, layer)
		for name, content := range files {
			path := filepath.Join(layer, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return layers.Image{}, err
			}
			mode := os.FileMode(0o644)
			if content == "" {
				data, err := os.ReadFile(busybox)
				if err != nil {
					return layers.Image{}, err
				}
				content, mode = string(data), 0o755
			}
			if err := os.WriteFile(path, []byte(content), mode); err != nil {
				return layers.Image{}, err
			}
		}
	}
	image := layers.Image{LayerDirs: dirs, Layers: len(dirs)}
	return image, errors.Join(
		image.ManifestDigest.UnmarshalText([]byte("sha256:"+digestHex)), image.ImageID.UnmarshalText([]byte(digestHex)))
}

// e2e drives the real binary as CRI-O does.
type e2e struct {
	t         *testing.T
	g         *WithT
	dir       string
	sandboxID string
	pod       pod.Pod
	config    string
	client    taskapi.TaskService
}

func newID(t *testing.T) string {
	t.Helper()
	id := make([]byte, 32)
	if _, err := rand.Read(id); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(id)
}

func newE2E(t *testing.T) *e2e {
	t.Helper()
	needRoot(t)
	for _, program := range []string{busybox, "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	e := &e2e{t: t, g: NewWithT(t), dir: t.TempDir(), sandboxID: newID(t)}
	e.pod = mustPod(t, "", e.sandboxID)
	e.config = writeConfig(t, fmt.Sprintf("runtime_root = %q\nstore_size = \"64m\"\nexits_dir = %q\n", filepath.Join(e.dir, "runc"), e.dir))
	t.Cleanup(func() { // whatever the test came to
		unlock, err := Manager{}.lock(unix.LOCK_SH) // no sweep of another pod's brings it a keeper now
		if err != nil {
			t.Error(err)
			return
		}
		defer unlock()
		if records, err := e.pod.List(); err == nil && len(records) > 0 {
			e.kill("-id " + e.sandboxID)
			e.kill(keeper.Command + "\x00" + e.sandboxID)
			_ = clean(context.WithoutCancel(t.Context()), e.pod)
		}
	})
	return e
}

// processes returns those of this pod whose command line contains text.
func (e *e2e) processes(text string) []int {
	e.t.Helper()
	var pids []int
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	e.g.Expect(err).NotTo(HaveOccurred())
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(data, []byte(e.sandboxID)) || !bytes.Contains(bytes.ReplaceAll(data, []byte("-id\x00"), []byte("-id ")), []byte(text)) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(p, "/")[2])
		e.g.Expect(err).NotTo(HaveOccurred())
		pids = append(pids, pid)
	}
	return pids
}

func (e *e2e) kill(text string) {
	e.t.Helper()
	for _, pid := range e.processes(text) {
		e.g.Expect(syscall.Kill(pid, syscall.SIGKILL)).To(Succeed())
	}
}

func (e *e2e) killShim()   { e.kill("-id " + e.sandboxID) }
func (e *e2e) killKeeper() { e.kill(keeper.Command + "\x00" + e.sandboxID) }

// bundle makes a container's bundle as CRI-O does.
func (e *e2e) bundle(id string, args ...string) (string, *rspec.Spec) {
	e.t.Helper()
	bundle := filepath.Join(e.dir, id)
	e.g.Expect(os.MkdirAll(bundle, 0o700)).To(Succeed())
	score := -998
	kind := "container"
	if id == e.sandboxID {
		kind = annotations.ContainerTypeSandbox
	}
	spec := &rspec.Spec{
		Version:     "1.0.2",
		Process:     &rspec.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, OOMScoreAdj: &score},
		Root:        &rspec.Root{Path: filepath.Join(bundle, "rootfs")},
		Linux:       &rspec.Linux{CgroupsPath: "/husk-e2e-" + e.sandboxID[:8] + "/crio-" + id, Namespaces: []rspec.LinuxNamespace{{Type: rspec.MountNamespace}, {Type: rspec.PIDNamespace}}},
		Mounts:      []rspec.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Annotations: map[string]string{annotations.CRIOSandboxID: e.sandboxID, annotations.CRIOContainerType: kind},
	}
	if id == e.sandboxID {
		e.g.Expect(os.MkdirAll(filepath.Join(spec.Root.Path, "proc"), 0o755)).To(Succeed())
		data, err := os.ReadFile(busybox)
		e.g.Expect(err).NotTo(HaveOccurred())
		e.g.Expect(os.WriteFile(filepath.Join(spec.Root.Path, "sleep"), data, 0o755)).To(Succeed())
	} else {
		spec.Annotations[annotations.User] = `{"user":"web"}`
	}
	return bundle, spec
}

// start is CRI-O's startRuntimeDaemon.
func (e *e2e) start(id, bundle string, spec *rspec.Spec) {
	e.t.Helper()
	data, err := json.Marshal(spec)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(os.WriteFile(filepath.Join(bundle, configFile), data, 0o600)).To(Succeed())
	log := filepath.Join(bundle, "log")
	e.g.Expect(syscall.Mkfifo(log, 0o600)).To(Succeed())
	go func() {
		f, err := os.Open(log)
		if err == nil {
			_, _ = io.Copy(io.Discard, f)
			_ = f.Close()
		}
	}()
	cmd := exec.CommandContext(e.t.Context(), "/proc/self/exe", "-namespace", "default", "-address", "", "-publish-binary", "x", "-id", id, "start")
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), binaryEnv+"=1", "TTRPC_ADDRESS=", "HTTPS_PROXY=http://proxy.example:1", "SOME_SECRET=s")
	out, err := cmd.CombinedOutput()
	e.g.Expect(err).NotTo(HaveOccurred(), "%s", out)
	e.g.Expect(string(out)).To(Equal(e.pod.Address()), "a bare address")
	e.g.Expect(os.ReadFile(filepath.Join(bundle, addressFile))).To(Equal(out))
	if e.client == nil {
		e.connect()
	}
}

func (e *e2e) connect() {
	e.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(e.t.Context(), "unix", e.pod.Socket())
	e.g.Expect(err).NotTo(HaveOccurred())
	e.client = taskapi.NewTaskClient(ttrpc.NewClient(conn))
}

// run creates and starts a container.
func (e *e2e) run(id string, args ...string) {
	e.t.Helper()
	bundle, spec := e.bundle(id, args...)
	e.start(id, bundle, spec)
	opts, err := typeurl.MarshalAny(&runtimeoptions.Options{ConfigPath: e.config})
	e.g.Expect(err).NotTo(HaveOccurred())
	ctx := e.t.Context()
	out := "file://" + filepath.Join(e.dir, id+".out")
	_, err = e.client.Create(ctx, &taskapi.CreateTaskRequest{
		ID: id, Bundle: bundle, Options: protobuf.FromAny(opts), Stdout: out, Stderr: out,
		Rootfs: []*types.Mount{pullMount(e.t, "r.example/app@sha256:"+digestHex)},
	})
	e.g.Expect(err).NotTo(HaveOccurred())
	_, err = e.client.Start(ctx, &taskapi.StartRequest{ID: id})
	e.g.Expect(err).NotTo(HaveOccurred())
}

// runPod runs a pod with one container and returns the container's ID.
func (e *e2e) runPod() string {
	e.t.Helper()
	e.run(e.sandboxID, "/sleep", "1000")
	id := newID(e.t)
	e.run(id, "/bin/sh", "-c", "id; cat /etc/secret; while :; do sleep 1; done")
	e.g.Eventually(func() string { return e.output(id) }, 5*time.Second).Should(ContainSubstring("layer content"))
	return id
}

func (e *e2e) output(name string) string {
	data, _ := os.ReadFile(filepath.Join(e.dir, name+".out"))
	return string(data)
}

// exec runs a command in a container and returns what it prints.
func (e *e2e) exec(id string, args ...string) string {
	e.t.Helper()
	name := newID(e.t)
	e.deleteExec(id, e.runExec(id, "file://"+filepath.Join(e.dir, name+".out"), args...))
	return e.output(name)
}

// runExec runs a command in a container until it exits and returns its exec ID.
func (e *e2e) runExec(id, out string, args ...string) string {
	e.t.Helper()
	ctx := e.t.Context()
	process, err := json.Marshal(&rspec.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}})
	e.g.Expect(err).NotTo(HaveOccurred())
	execID := newID(e.t)
	_, err = e.client.Exec(ctx, &taskapi.ExecProcessRequest{
		ID: id, ExecID: execID, Stdout: out, Stderr: out, Spec: &ptypes.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: process},
	})
	e.g.Expect(err).NotTo(HaveOccurred())
	_, err = e.client.Start(ctx, &taskapi.StartRequest{ID: id, ExecID: execID})
	e.g.Expect(err).NotTo(HaveOccurred())
	_, err = e.client.Wait(ctx, &taskapi.WaitRequest{ID: id, ExecID: execID})
	e.g.Expect(err).NotTo(HaveOccurred())
	return execID
}

func (e *e2e) deleteExec(id, execID string) {
	e.t.Helper()
	_, err := e.client.Delete(e.t.Context(), &taskapi.DeleteRequest{ID: id, ExecID: execID})
	e.g.Expect(err).NotTo(HaveOccurred())
}

// remove is CRI-O's StopContainer and deleteContainer.
func (e *e2e) remove(id string) {
	e.t.Helper()
	ctx := e.t.Context()
	_, err := e.client.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(syscall.SIGKILL)})
	e.g.Expect(err).NotTo(HaveOccurred())
	_, err = e.client.Wait(ctx, &taskapi.WaitRequest{ID: id})
	e.g.Expect(err).NotTo(HaveOccurred())
	_, err = e.client.Delete(ctx, &taskapi.DeleteRequest{ID: id})
	e.g.Expect(err).NotTo(HaveOccurred())
	// CRI-O does not mind either when the shim is gone before it has answered.
	if _, err = e.client.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id}); !errors.Is(err, ttrpc.ErrClosed) {
		e.g.Expect(err).NotTo(HaveOccurred())
	}
}

// gone expects that nothing of the pod is left.
func (e *e2e) gone() {
	e.t.Helper()
	e.g.Eventually(func() []int { return e.processes("") }, 10*time.Second).Should(BeEmpty())
	e.g.Expect(e.pod.Dir()).NotTo(BeADirectory())
	left, err := filepath.Glob(filepath.Join(e.dir, "runc", "default", "*"))
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(left).To(BeEmpty(), "state of the runtime")
	mounts, err := os.ReadFile("/proc/self/mounts")
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(string(mounts)).NotTo(ContainSubstring(e.sandboxID))
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		parents, err := filepath.Glob(pattern + "husk-e2e-" + e.sandboxID[:8])
		e.g.Expect(err).NotTo(HaveOccurred())
		for _, dir := range parents {
			e.g.Expect(os.Remove(dir)).To(Succeed(), "the pod's own cgroup, which kubelet would remove, has no children")
		}
	}
}

func TestPodOnTheRealBinary(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	g := e.g
	g.Expect(e.output(id)).To(ContainSubstring("uid=1234(web) gid=2345"))
	g.Expect(e.exec(id, "/bin/id")).To(ContainSubstring("uid=1234(web) gid=2345"))
	g.Expect(e.exec(id, "/bin/sh", "-c", "echo $HOME")).To(Equal("/home/web\n"))
	g.Expect(e.processes("-id "+e.sandboxID)).To(HaveLen(1), "one shim for the pod")

	// CRI-O may begin to read what an exec prints only when it has deleted the exec.
	path := mkfifo(t)
	execID := e.runExec(id, path, "/bin/echo", "late")
	out := readLater(t, path, 50*time.Millisecond)
	e.deleteExec(id, execID)
	g.Expect(out()).To(Equal("late\n"))

	// The host sees no layer, and no mount of the shim's.
	entries, err := os.ReadDir(e.pod.Store())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(entries).To(BeEmpty())
	mounts, err := os.ReadFile("/proc/self/mounts")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(mounts)).NotTo(ContainSubstring(e.sandboxID))

	e.remove(id)
	e.remove(e.sandboxID)
	e.gone()
}

func TestVersion(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, flag := range []string{"--version", "-v"} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", flag)
		cmd.Env = append(os.Environ(), binaryEnv+"=1")
		out, err := cmd.CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(out)).To(Equal("containerd-shim-husk-v2 1.2.3\n"))
	}
}

func TestKilledShim(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	g := e.g
	done := make(chan *taskapi.WaitResponse, 1)
	go func() {
		resp, err := e.client.Wait(context.WithoutCancel(t.Context()), &taskapi.WaitRequest{ID: id})
		if err != nil {
			t.Error(err)
		}
		done <- resp
	}()
	e.killShim()
	var resp *taskapi.WaitResponse
	g.Eventually(done, 10*time.Second).Should(Receive(&resp), "CRI-O learns that the container is dead")
	g.Expect(resp.ExitStatus).To(Equal(uint32(pod.KilledStatus)))
	state, err := e.client.State(t.Context(), &taskapi.StateRequest{ID: id})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(state.Status).To(Equal(task.Status_STOPPED))
	g.Expect(filepath.Join(e.dir, id)).To(BeADirectory()) // the bundle is CRI-O's
	e.remove(id)
	e.remove(e.sandboxID)
	e.gone()
}

// A shim that is asked to end leaves the pod to its keeper, and the socket too.
func TestTerminatedShim(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	for _, pid := range e.processes("-id " + e.sandboxID) {
		e.g.Expect(syscall.Kill(pid, syscall.SIGTERM)).To(Succeed())
	}
	e.g.Eventually(func() (task.Status, error) {
		e.connect() // as CRI-O does when it restarts
		state, err := e.client.State(t.Context(), &taskapi.StateRequest{ID: id})
		return state.GetStatus(), err
	}, 10*time.Second).Should(Equal(task.Status_STOPPED))
	e.connect() // the socket is still there
	e.remove(id)
	e.remove(e.sandboxID)
	e.gone()
}

func TestKilledKeeper(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	e.killKeeper()
	// CRI-O connects anew when it restarts.
	e.g.Eventually(func() error {
		e.connect()
		_, err := e.client.State(t.Context(), &taskapi.StateRequest{ID: id})
		return err
	}, 5*time.Second).Should(Succeed())
	e.g.Expect(e.exec(id, "/bin/id")).To(ContainSubstring("uid=1234(web)"))
	e.remove(id)
	e.remove(e.sandboxID)
	e.gone()
}
