package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/namespaces"
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// Name is the shim's name: CRI-O wants the binary to be containerd-shim-husk-v2.
	Name       = "io.containerd.husk.v2"
	configFile = "config.json"
	// addressFile is where CRI-O finds the shim's address after a restart.
	addressFile = "address"
	// logWait is how long `start` tries to release CRI-O's reader of a log that
	// nobody will write.
	logWait = 200 * time.Millisecond
)

// Manager starts and cleans up shims, one for each pod, for the containerd shim
// framework. Its zero value is ready.
type Manager struct {
	// StateDir is where pods keep their state; empty is [pod.DefaultStateDir].
	StateDir string
}

var _ containerdshim.Manager = Manager{}

// Name returns the shim's name.
func (Manager) Name() string { return Name }

// grouping says which pod a container belongs to.
type grouping struct {
	sandboxID string
	// starts is set for a container that a pod begins with.
	starts bool
}

func groupOf(id string, spec map[string]string) (grouping, error) {
	sandboxID := spec[annotations.CRIOSandboxID]
	if sandboxID == "" {
		return grouping{id, true}, nil // not made by CRI-O: a pod of one container
	}
	starts := spec[annotations.CRIOContainerType] == annotations.ContainerTypeSandbox
	// A pod's own annotations are written over CRI-O's in the spec of its sandbox
	// (server/sandbox_run_linux.go). One that names another pod would put the sandbox
	// there, and its end would be that pod's.
	if starts && sandboxID != id {
		return grouping{}, errdefs.Newf(errdefs.InvalidArgument, "find the pod of sandbox "+id,
			"its annotation %s is %q, not its own ID", annotations.CRIOSandboxID, sandboxID)
	}
	return grouping{sandboxID, starts}, nil
}

func readGrouping(bundle, id string) (grouping, error) {
	data, err := pod.ReadFile(filepath.Join(bundle, configFile), maxSpec)
	if err != nil {
		return grouping{}, fmt.Errorf("read the spec of container %s: %w", id, err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return grouping{}, fmt.Errorf("read the spec of container %s: %w", id, err)
	}
	return groupOf(id, spec.Annotations)
}

// Start returns the address of the container's pod, whose shim it starts if the
// container is the pod's first. The working directory is the container's bundle.
func (m Manager) Start(ctx context.Context, id string, opts containerdshim.StartOpts) (string, error) {
	group, err := readGrouping(".", id)
	if err != nil {
		return "", err
	}
	p, err := pod.New(m.StateDir, group.sandboxID)
	if err != nil {
		return "", err
	}
	if err := containerdshim.WriteAddress(addressFile, p.Address()); err != nil {
		return "", err
	}
	answered, err := kept(p)
	if err != nil {
		return "", err
	}
	if answered {
		releaseLog(ctx)
		return p.Address(), nil
	}
	if !group.starts {
		return "", errdefs.Newf(errdefs.Unavailable, "start container "+id, "the shim of pod %s does not answer", p.ID())
	}
	unlock, err := m.lock(unix.LOCK_SH)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := clean(ctx, p); err != nil {
		return "", err
	}
	if err := p.Create(); err != nil {
		return "", err
	}
	if err := startKept(ctx, keeperArgs{Pod: p, Debug: opts.Debug}); err != nil {
		return "", errors.Join(err, p.Remove())
	}
	return p.Address(), nil
}

// startKeeper starts this binary as the pod's keeper, in a session of its own. That of a
// pod that begins logs to the log in the working directory, the bundle.
func startKeeper(ctx context.Context, args keeperArgs, socket *os.File) (err error) {
	if args.Namespace, err = namespaces.NamespaceRequired(ctx); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // our own binary, and it outlives ctx
	cmd.Args = args.encode()
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if args.Orphan {
		cmd.Dir = args.Pod.Dir() // a file called log in the operator's directory, or another pod's, is not its own
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // the caller may be a keeper, and live longer: there are to be no zombies
	return nil
}

// releaseLog ends the read of CRI-O's that waits for this container's shim to open
// the bundle's log: the pod's shim logs to that of its first container, and the
// reader would hold a thread of CRI-O's for as long as CRI-O runs.
func releaseLog(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, logWait)
	defer cancel()
	for {
		fd, err := unix.Open("log", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			_ = unix.Close(fd)
			return
		}
		if !errors.Is(err, unix.ENXIO) {
			return // no log here
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Stop cleans up after a container whose shim is gone (the framework's `delete`).
// With the first or the last container of a pod goes what is left of the pod. The
// working directory is the container's bundle.
func (m Manager) Stop(ctx context.Context, id string) (containerdshim.StopStatus, error) {
	group, err := readGrouping(".", id)
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	p, err := pod.New(m.StateDir, group.sandboxID)
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	// A sweep in the middle of this would start a keeper for what is being removed.
	unlock, err := m.lock(unix.LOCK_SH)
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	defer unlock()
	answered, err := kept(p)
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	if answered {
		return stopAnswered(ctx, p, id)
	}
	r, err := p.Get(id)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return containerdshim.StopStatus{}, err
	}
	if err == nil {
		if err := errors.Join(r.Destroy(ctx), p.Drop(id)); err != nil {
			return containerdshim.StopStatus{}, err
		}
	}
	if group.starts {
		err = clean(ctx, p)
	} else if left, listErr := p.List(); listErr == nil && len(left) == 0 {
		err = p.Remove()
	} else {
		err = listErr
	}
	r = r.Exited(time.Now(), pod.KilledStatus)
	return containerdshim.StopStatus{Pid: int(r.Pid), ExitStatus: int(r.ExitStatus), ExitedAt: r.ExitedAt}, err
}

// stopAnswered forgets a container of a pod that has somebody who answers for it: that
// must be a keeper without a shim, as a sweep leaves it.
func stopAnswered(ctx context.Context, p pod.Pod, id string) (_ containerdshim.StopStatus, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.Socket())
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	client := ttrpc.NewClient(conn)
	defer func() { err = errors.Join(err, client.Close()) }()
	tasks := taskapi.NewTaskClient(client)
	who, err := tasks.Connect(ctx, &taskapi.ConnectRequest{ID: id})
	if err == nil && who.ShimPid != 0 {
		err = errdefs.Newf(errdefs.InUse, "clean up container "+id, "the shim of pod %s lives", p.ID())
	}
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	gone, err := tasks.Delete(ctx, &taskapi.DeleteRequest{ID: id})
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	_, err = tasks.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	return containerdshim.StopStatus{Pid: int(gone.Pid), ExitStatus: int(gone.ExitStatus), ExitedAt: gone.ExitedAt.AsTime()}, err
}

// clean removes what is left of a pod without a shim: its containers and its state.
func clean(ctx context.Context, p pod.Pod) error {
	records, err := p.List()
	if err != nil {
		return err
	}
	for _, r := range records {
		err = errors.Join(err, r.Destroy(ctx))
	}
	return errors.Join(err, p.Remove())
}
