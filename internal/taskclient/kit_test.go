package taskclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim"
	"github.com/husk-cri/husk/internal/shim/keeper"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/katavolume"
	"github.com/husk-cri/husk/pkg/layerpull"
)

const (
	// binaryEnv makes the test binary Husk's shim, in all its processes.
	binaryEnv = "HUSK_TEST_BINARY"
	busybox   = "/bin/busybox"
)

func TestMain(m *testing.M) {
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	if os.Getenv(binaryEnv) != "" || command == keeper.Command || command == layers.ChildCommand {
		os.Exit(shim.Main(context.Background(), os.Args, "1.2.3", busyboxPuller{}))
	}
	os.Exit(m.Run())
}

// busyboxPuller makes an image of busybox.
type busyboxPuller struct{}

func (busyboxPuller) Pull(_ context.Context, req layers.PullRequest, _ func(layerpull.Progress)) (layers.Image, error) {
	layer := filepath.Join(req.StoreDir, "0")
	data, err := os.ReadFile(busybox)
	if err != nil {
		return layers.Image{}, err
	}
	if err := os.MkdirAll(filepath.Join(layer, "bin"), 0o755); err != nil {
		return layers.Image{}, err
	}
	for _, name := range []string{"sh", "sleep", "cat", "echo", "stty", "seq"} {
		if err := os.WriteFile(filepath.Join(layer, "bin", name), data, 0o755); err != nil {
			return layers.Image{}, err
		}
	}
	image := layers.Image{LayerDirs: []string{layer}, Layers: 1}
	if err := image.ManifestDigest.UnmarshalText([]byte("sha256:" + digestHex)); err != nil {
		return layers.Image{}, err
	}
	return image, image.ImageID.UnmarshalText([]byte(digestHex))
}

var digestHex = strings.Repeat("ab", 32)

// e2e is a pod on the real shim and the real runc.
type e2e struct {
	t         *testing.T
	g         *WithT
	dir       string
	config    string
	sandboxID string
	runtime   Runtime
	shim      *Shim
	log       *syncBuffer
}

// syncBuffer is a buffer that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newID(t *testing.T) string {
	t.Helper()
	id := make([]byte, 32)
	if _, err := rand.Read(id); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(id)
}

// script makes an executable of a shell script.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "containerd-shim-test-v2")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func newE2E(t *testing.T) *e2e {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range []string{busybox, "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	e := &e2e{t: t, g: NewWithT(t), dir: t.TempDir(), sandboxID: newID(t), log: &syncBuffer{}}
	e.runtime.Path = script(t, fmt.Sprintf("%s=1 exec %q \"$@\"", binaryEnv, self))
	e.config = filepath.Join(e.dir, "shim.toml")
	text := fmt.Sprintf("runtime_root = %q\nstore_size = \"64m\"\nexits_dir = %q\n", filepath.Join(e.dir, "runc"), e.dir)
	e.g.Expect(os.WriteFile(e.config, []byte(text), 0o600)).To(Succeed())
	t.Cleanup(func() { // whatever the test came to
		for _, pid := range e.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		e.g.Eventually(e.processes, 5*time.Second).Should(BeEmpty())
		ctx := context.WithoutCancel(t.Context())
		if err := e.runtime.Delete(ctx, e.sandboxID, filepath.Join(e.dir, e.sandboxID)); err != nil {
			t.Error(err)
		}
		for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
			groups, _ := filepath.Glob(pattern + e.cgroup())
			for _, group := range groups {
				if err := os.Remove(group); err != nil {
					t.Error(err)
				}
			}
		}
	})
	e.start(e.sandboxID, annotations.ContainerTypeSandbox, nil, StreamsConfig{}, "/bin/sleep", "1000")
	return e
}

func (e *e2e) cgroup() string { return "husk-task-" + e.sandboxID[:8] }

// processes are the shim and the keeper of this pod.
func (e *e2e) processes() []int {
	e.t.Helper()
	var pids []int
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	e.g.Expect(err).NotTo(HaveOccurred())
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(data, []byte(e.sandboxID)) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(p, "/")[2])
		e.g.Expect(err).NotTo(HaveOccurred())
		pids = append(pids, pid)
	}
	return pids
}

// killShim kills the shim alone, not its keeper.
func (e *e2e) killShim() {
	e.t.Helper()
	killed := 0
	for _, pid := range e.processes() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(data, []byte("\x00-id\x00"+e.sandboxID)) {
			e.g.Expect(syscall.Kill(pid, syscall.SIGKILL)).To(Succeed())
			killed++
		}
	}
	e.g.Expect(killed).To(Equal(1))
}

func (e *e2e) streams(cfg StreamsConfig) *Streams {
	e.t.Helper()
	s, err := NewStreams(filepath.Join(e.dir, "fifo"), cfg)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.t.Cleanup(func() { e.g.Expect(s.Close()).To(Succeed()) })
	return s
}

// start runs a container and returns its streams.
func (e *e2e) start(id, kind string, image *katavolume.Volume, cfg StreamsConfig, args ...string) *Streams {
	e.t.Helper()
	bundle := filepath.Join(e.dir, id)
	score := -998
	spec := &rspec.Spec{
		Version:     "1.0.2",
		Process:     &rspec.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, OOMScoreAdj: &score, Terminal: cfg.Terminal},
		Root:        &rspec.Root{Path: filepath.Join(bundle, "rootfs")},
		Linux:       &rspec.Linux{CgroupsPath: "/" + e.cgroup() + "/crio-" + id, Namespaces: []rspec.LinuxNamespace{{Type: rspec.MountNamespace}, {Type: rspec.PIDNamespace}}},
		Mounts:      []rspec.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}, {Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}}},
		Annotations: map[string]string{annotations.CRIOSandboxID: e.sandboxID, annotations.CRIOContainerType: kind, annotations.User: `{"user":"0"}`},
	}
	e.g.Expect(os.MkdirAll(filepath.Join(spec.Root.Path, "bin"), 0o755)).To(Succeed())
	if image == nil {
		for _, dir := range []string{"proc", "dev"} {
			e.g.Expect(os.MkdirAll(filepath.Join(spec.Root.Path, dir), 0o755)).To(Succeed())
		}
		data, err := os.ReadFile(busybox)
		e.g.Expect(err).NotTo(HaveOccurred())
		e.g.Expect(os.WriteFile(filepath.Join(spec.Root.Path, "bin/sleep"), data, 0o755)).To(Succeed())
	}
	data, err := json.Marshal(spec)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)).To(Succeed())
	ctx := e.t.Context()
	s, err := e.runtime.Start(ctx, id, bundle, e.log)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.t.Cleanup(func() { _ = s.Close() })
	e.shim = s
	e.g.Expect(Address(bundle)).To(Equal(s.Address()))
	io := e.streams(cfg)
	pid, err := s.Create(ctx, CreateRequest{ID: id, Bundle: bundle, IO: io.IO(), Terminal: cfg.Terminal, ConfigPath: e.config, GuestPull: image})
	e.g.Expect(err).NotTo(HaveOccurred(), "%s", e.log)
	e.g.Expect(s.State(ctx, id)).To(And(HaveField("Status", StatusCreated), HaveField("Pid", pid)))
	started, err := s.Start(ctx, id, "")
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(started).To(Equal(pid))
	e.g.Expect(s.State(ctx, id)).To(HaveField("Status", StatusRunning))
	return io
}

func (e *e2e) image() *katavolume.Volume {
	return &katavolume.Volume{
		VolumeType: katavolume.TypeImageGuestPull, Source: "r.example/app@sha256:" + digestHex, FSType: "overlay_fs",
		ImagePull: &katavolume.Metadata{Metadata: map[string]string{"a": "b"}},
	}
}

// run runs a container of the image.
func (e *e2e) run(cfg StreamsConfig, args ...string) (id string, s *Streams) {
	e.t.Helper()
	id = newID(e.t)
	return id, e.start(id, "container", e.image(), cfg, args...)
}

// exec starts one more process.
func (e *e2e) exec(id string, cfg StreamsConfig, args ...string) (execID string, s *Streams) {
	e.t.Helper()
	execID, s = newID(e.t), e.streams(cfg)
	process := &rspec.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: cfg.Terminal}
	e.g.Expect(e.shim.Exec(e.t.Context(), ExecRequest{ID: id, ExecID: execID, Process: process, IO: s.IO(), Terminal: cfg.Terminal})).To(Succeed())
	pid, err := e.shim.Start(e.t.Context(), id, execID)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(pid).To(BeNumerically(">", 0))
	return execID, s
}

// finish waits for a process, its output and its end, and returns its exit code.
func (e *e2e) finish(id, execID string, s *Streams) int {
	e.t.Helper()
	ctx := e.t.Context()
	exit, err := e.shim.Wait(ctx, id, execID)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(exit.At).To(BeTemporally("~", time.Now(), time.Minute))
	e.g.Expect(s.Wait(ctx)).To(Succeed())
	deleted, err := e.shim.Delete(ctx, id, execID)
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(deleted.Code).To(Equal(exit.Code))
	return exit.Code
}

// end stops the pod and expects that nothing is left of it.
func (e *e2e) end() {
	e.t.Helper()
	ctx := e.t.Context()
	e.g.Expect(e.shim.Kill(ctx, e.sandboxID, "", syscall.SIGKILL, false)).To(Succeed())
	_, err := e.shim.Wait(ctx, e.sandboxID, "")
	e.g.Expect(err).NotTo(HaveOccurred())
	_, err = e.shim.Delete(ctx, e.sandboxID, "")
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(e.shim.Shutdown(ctx, e.sandboxID)).To(Succeed())
	e.g.Eventually(e.processes, 10*time.Second).Should(BeEmpty())
	e.g.Expect(e.shim.Shutdown(ctx, e.sandboxID)).To(Succeed(), "it is gone already")
	_, err = e.shim.State(ctx, e.sandboxID)
	e.g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
}
