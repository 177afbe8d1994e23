// Package sandbox runs a pull inside a pod's sandbox on the host: in a child
// process, which is this binary executed again, in the network namespace and the
// cgroup of the pod, in mount and process namespaces of its own, with the pod's
// resolv.conf in place of the host's and nothing of the host's environment.
//
// The request goes to the child as JSON on its standard input and the answer
// comes back as JSON on its standard output, errors with their errdefs kind.
package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	runc "github.com/containerd/go-runc"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// ChildCommand is the first argument that makes a binary run [Child].
const ChildCommand = "husk-sandbox-pull"

const (
	// maxRequest bounds what a child reads, maxAnswer what its parent reads: an
	// answer holds an image config (the pull limits those to a few MiB) and a list
	// of directories. More is a child gone wrong.
	maxRequest = 1 << 20
	maxAnswer  = 16 << 20
	// maxDiagnostics bounds what is kept of a child's standard error, so that a
	// child that logs without end fills neither memory nor an error message.
	maxDiagnostics = 4 << 10
	// childPath is the PATH of a child: key providers are found in it.
	childPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// killedStatus is how the monitor reports a SIGKILL. Only the kernel sends one that
// the context did not ask for.
const killedStatus = 128 + int(syscall.SIGKILL)

// Request says what to pull and where the child runs.
type Request struct {
	// Name is unique in the pod and names the child's cgroup: the container's ID.
	Name string
	// NetNS is the path of the pod's network namespace; empty is the host's.
	NetNS string
	// Cgroup is the linux.cgroupsPath of a container of the pod; when it is empty
	// the child stays in the caller's group.
	Cgroup string
	// OOMScoreAdj is the least the child has. The caller's own, which may protect it
	// from the kernel, is not inherited: what a pull uses up is the pod's loss.
	OOMScoreAdj int
	// Pull is what the child does.
	Pull PullRequest
}

// PullRequest is what a child is asked to do. An empty path means the default of
// containers/image.
type PullRequest struct {
	// Reference is repo@digest.
	Reference string `json:"reference"`
	// StoreDir is where the layers go; TempDir, in it, is the child's TMPDIR.
	StoreDir string `json:"storeDir"`
	TempDir  string `json:"tempDir,omitempty"`
	// ResolvConf is a file that takes the place of /etc/resolv.conf; empty leaves the host's.
	ResolvConf string `json:"resolvConf,omitempty"`
	// The node's configuration of registries, credentials, keys and policy.
	AuthFile          string `json:"authFile,omitempty"`
	KeysDir           string `json:"keysDir,omitempty"`
	PolicyPath        string `json:"policyPath,omitempty"`
	RegistriesConf    string `json:"registriesConf,omitempty"`
	RegistriesConfDir string `json:"registriesConfDir,omitempty"`
	RegistriesD       string `json:"registriesD,omitempty"`
	CertsDir          string `json:"certsDir,omitempty"`
}

// Image is what a pull left in the store.
type Image struct {
	// ManifestDigest is the digest of the manifest that was pulled.
	ManifestDigest string `json:"manifestDigest"`
	// LayerDirs are the unpacked layers, the lowest first.
	LayerDirs []string `json:"layerDirs"`
	// RootDir is the one of them that gives "/" its mode and owner; empty is none.
	RootDir string `json:"rootDir,omitempty"`
	// Config is the image config.
	Config imgspec.Image `json:"config"`
}

// Puller pulls an image into a store; it runs in the child.
type Puller interface {
	Pull(ctx context.Context, req PullRequest) (Image, error)
}

type answer struct {
	Image   *Image `json:"image,omitempty"`
	Kind    string `json:"kind,omitempty"`
	Message string `json:"message,omitempty"`
}

// Runner starts children.
type Runner struct {
	// Monitor starts and waits for processes. It must be the one that reaps the
	// children of the calling process (reaper.Default in a shim).
	Monitor runc.ProcessMonitor
	// Executable is the binary to run; empty is the calling one.
	Executable string
}

// Run runs a pull in a child and returns its answer. A canceled context kills the
// child and everything it started.
func (r Runner) Run(ctx context.Context, req Request) (Image, error) {
	type result struct {
		image Image
		err   error
	}
	done := make(chan result, 1)
	go func() {
		// The thread enters the pod's network namespace and is the one whose death
		// would kill the child (PDEATHSIG), so it is held until the child is gone.
		// Then it goes back and on: to end it, as a goroutine does that never unlocks,
		// would kill whatever it had started before, such as an OCI runtime at work.
		runtime.LockOSThread()
		image, back, err := r.runIn(ctx, req)
		done <- result{image, err}
		if back() != nil {
			select {} // a thread in the wrong namespace is of no use, and still must not end
		}
		runtime.UnlockOSThread()
	}()
	res := <-done
	return res.image, res.err
}

// runIn runs the pull from the pod's network namespace, which the calling thread is
// then in until it calls back. back is never nil.
func (r Runner) runIn(ctx context.Context, req Request) (_ Image, back func() error, _ error) {
	back, err := enterNetNS(req.NetNS)
	if err != nil {
		return Image{}, back, errdefs.New(errdefs.Internal, "pull "+req.Pull.Reference+" in the sandbox", err)
	}
	image, err := r.run(ctx, req)
	return image, back, err
}

func (r Runner) run(ctx context.Context, req Request) (Image, error) {
	op := "pull " + req.Pull.Reference + " in the sandbox"
	stdin, feed, err := os.Pipe()
	if err != nil {
		return Image{}, errdefs.New(errdefs.Internal, op, err)
	}
	defer func() { _ = stdin.Close(); _ = feed.Close() }() // closed twice on success; nothing is lost
	out, diag := &limitedBuffer{max: maxAnswer}, &tail{max: maxDiagnostics}
	cmd := r.command(req, stdin)
	cmd.Stdout, cmd.Stderr = out, diag
	exits, err := r.Monitor.Start(cmd)
	if err != nil {
		return Image{}, errdefs.New(errdefs.Internal, op, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may be gone already
	defer stop()

	leave, err := r.admit(req, cmd.Process.Pid, feed)
	if err != nil {
		_ = cmd.Process.Kill() // it waits for a request that never comes
	}
	status, waitErr := r.Monitor.Wait(cmd, exits)
	leaveErr := leave()
	switch {
	case ctx.Err() != nil:
		return Image{}, errdefs.New(errdefs.KindOf(context.Cause(ctx)), op, context.Cause(ctx))
	case err != nil || waitErr != nil:
		return Image{}, errdefs.New(errdefs.Internal, op, errors.Join(err, waitErr, leaveErr))
	}
	image, err := out.answer()
	switch {
	case err != nil && status == killedStatus:
		err = errdefs.Newf(errdefs.TooLarge, op,
			"the child was killed, as the kernel does for want of memory: layers count against the memory limit of the pod")
	case err != nil && status != 0:
		err = errdefs.Newf(errdefs.Internal, op, "child ended with status %d: %s", status, diag)
	case err == nil && leaveErr != nil:
		err = errdefs.New(errdefs.Internal, op, leaveErr)
	}
	return image, err
}

// admit puts a started child into the pod's cgroup and then gives it its work.
// Until then the child waits and has used nothing. leave is never nil.
func (r Runner) admit(req Request, pid int, feed *os.File) (leave func() error, err error) {
	leave = func() error { return nil }
	if req.Cgroup != "" {
		left, err := joinPod(req.Cgroup, req.Name, pid)
		if err != nil {
			return leave, err
		}
		leave = left
	}
	if err := raiseOOMScore(pid, req.OOMScoreAdj); err != nil {
		return leave, err
	}
	data, err := json.Marshal(req.Pull)
	if err != nil {
		return leave, fmt.Errorf("encode request: %w", err)
	}
	if _, err := feed.Write(data); err != nil {
		return leave, fmt.Errorf("send request: %w", err)
	}
	if err := feed.Close(); err != nil {
		return leave, fmt.Errorf("send request: %w", err)
	}
	return leave, nil
}

func oomScoreFile(pid int) string { return fmt.Sprintf("/proc/%d/oom_score_adj", pid) }

// OOMScore returns a process's oom_score_adj.
func OOMScore(pid int) (int, error) {
	data, err := os.ReadFile(oomScoreFile(pid))
	if err != nil {
		return 0, fmt.Errorf("read oom_score_adj: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read oom_score_adj: %w", err)
	}
	return score, nil
}

func raiseOOMScore(pid, least int) error {
	score, err := OOMScore(pid)
	if err != nil || score >= least {
		return err
	}
	if err := os.WriteFile(oomScoreFile(pid), []byte(strconv.Itoa(least)), 0); err != nil {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	return nil
}

func (r Runner) command(req Request, stdin *os.File) *exec.Cmd {
	exe := r.Executable
	if exe == "" {
		exe = "/proc/self/exe"
	}
	cmd := exec.Command(exe, ChildCommand) //nolint:noctx // our own binary; ctx kills it through the monitor
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + childPath, "HOME=/nonexistent"}
	if req.Pull.TempDir != "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+req.Pull.TempDir)
	}
	cmd.Stdin = stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL,
		// A process namespace, so that what the child starts (key providers) dies with it.
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
	}
	return cmd
}

// enterNetNS moves the calling thread, which is locked, into a network namespace;
// back, which is never nil, moves it back to where it was.
func enterNetNS(path string) (back func() error, err error) {
	back = func() error { return nil }
	if path == "" {
		return back, nil
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return back, fmt.Errorf("open the network namespace of the thread: %w", err)
	}
	ns, err := os.Open(path)
	if err != nil {
		return own.Close, fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return own.Close, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return func() error {
		defer func() { _ = own.Close() }()
		return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
	}, nil
}

// limitedBuffer holds up to max bytes and fails on the next.
type limitedBuffer struct {
	max int
	buf bytes.Buffer
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > b.max {
		return 0, errdefs.Newf(errdefs.TooLarge, "read the answer of a sandbox child", "more than %d bytes", b.max)
	}
	return b.buf.Write(p)
}

func (b *limitedBuffer) answer() (Image, error) {
	var a answer
	if err := json.Unmarshal(b.buf.Bytes(), &a); err != nil {
		return Image{}, errdefs.New(errdefs.Internal, "read the answer of a sandbox child", err)
	}
	switch {
	case a.Kind != "":
		return Image{}, errdefs.New(errdefs.ParseKind(a.Kind), a.Message, nil)
	case a.Image == nil:
		return Image{}, errdefs.New(errdefs.Internal, "a sandbox child answered neither an image nor an error", nil)
	}
	return *a.Image, nil
}

// tail keeps the last max bytes written to it.
type tail struct {
	max int
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.buf)) }
