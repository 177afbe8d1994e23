package fakekata

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
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	"github.com/containerd/ttrpc"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	serveCommand = "serve"
	// serveArgs is the length of a server's command line: itself, the command, the
	// pod's ID and its bundle, which is for people and for tests that look for strays.
	serveArgs = 4
	// listenerFD is the server's socket: the first of exec.Cmd's ExtraFiles.
	listenerFD = 3
	// logWait is how long `start` waits for CRI-O to read the shim's log.
	logWait = time.Second
	// killed is the status of what was killed, as a shell has it.
	killed = 128 + int(unix.SIGKILL)
	// maxSpec bounds config.json: CRI-O's are far smaller.
	maxSpec = 16 << 20
)

// Manager starts and cleans up shims, one for each pod. Its zero value is ready.
type Manager struct{}

var _ containerdshim.Manager = Manager{}

// Name returns the shim's name.
func (Manager) Name() string { return "io.containerd.fakekata.v2" }

// Start prints the address of the container's pod, whose shim it starts unless the
// container joins a pod. The working directory is the container's bundle.
func (Manager) Start(ctx context.Context, id string, opts containerdshim.StartOpts) (string, error) {
	bundle, err := os.Getwd()
	if err != nil {
		return "", err
	}
	spec, err := readSpec(id, bundle)
	if err != nil {
		return "", err
	}
	kind, _, err := containerType(spec)
	if err != nil {
		return "", err
	}
	sandbox := id
	if kind == typeContainer {
		if sandbox, err = sandboxID(spec); err != nil {
			return "", err
		}
	}
	// Kata knows the pod's address by its ID too.
	address, err := containerdshim.SocketAddress(ctx, opts.Address, sandbox)
	if err != nil {
		return "", err
	}
	log := openLog(ctx)
	defer func() { _ = log.Close() }() // CRI-O's reader ends with its last writer
	if kind != typeContainer {
		if err := startServer(address, sandbox, bundle, log); err != nil {
			return "", err
		}
	}
	return address, containerdshim.WriteAddress("address", address)
}

// openLog opens the FIFO that CRI-O reads the shim's log from, or nothing where none reads.
func openLog(ctx context.Context) *os.File {
	ctx, cancel := context.WithTimeout(ctx, logWait)
	defer cancel()
	for {
		fd, err := unix.Open("log", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), "log")
		}
		if !errors.Is(err, unix.ENXIO) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Millisecond): // a FIFO tells nobody that it has a reader
		}
	}
}

func startServer(address, id, bundle string, log *os.File) (err error) {
	if err := containerdshim.RemoveSocket(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := containerdshim.NewSocket(address)
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false) // the server's copy goes on
	defer func() { err = errors.Join(err, listener.Close()) }()
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // our own binary, and it outlives ctx
	cmd.Args = []string{BinaryName, serveCommand, id, bundle}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if log != nil {
		cmd.Stderr = log
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// Stop is the framework's `delete`, for a container whose shim is gone. Nothing outlives a
// shim of this kind: its processes end with it.
func (Manager) Stop(ctx context.Context, id string) (containerdshim.StopStatus, error) {
	address, err := containerdshim.SocketAddress(ctx, "", id)
	if err != nil {
		return containerdshim.StopStatus{}, err
	}
	if err := containerdshim.RemoveSocket(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return containerdshim.StopStatus{}, err
	}
	return containerdshim.StopStatus{ExitStatus: killed, ExitedAt: time.Now()}, nil
}

// serve is the shim of one pod, until its last container is deleted and CRI-O says Shutdown.
func serve(ctx context.Context, args []string) error {
	if len(args) != serveArgs {
		return fmt.Errorf("%s takes a pod and a bundle", serveCommand)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	file := os.NewFile(listenerFD, "listener")
	listener, err := net.FileListener(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return err
	}
	s := newService(args[2], cancel)
	taskapi.RegisterTaskService(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		// The answer to Shutdown is still on its way.
		stop, stopped := context.WithTimeout(context.WithoutCancel(ctx), logWait)
		defer stopped()
		_ = server.Shutdown(stop) // it waits for idle connections, which CRI-O keeps
		err = nil
	}
	s.endAll()
	address, addressErr := containerdshim.SocketAddress(ctx, "", args[2])
	if addressErr == nil {
		_ = containerdshim.RemoveSocket(address)
	}
	return errors.Join(err, addressErr)
}

// readSpec reads config.json as Kata does, which wants an ID and a bundle that is a directory.
func readSpec(id, bundle string) (*rspec.Spec, error) {
	if id == "" {
		return nil, errors.New("missing container ID")
	}
	if bundle == "" {
		return nil, errors.New("missing bundle path")
	}
	info, err := os.Stat(bundle)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("invalid OCI bundle, it should be a directory: %s", bundle)
	}
	path := filepath.Join(bundle, "config.json")
	info, err = os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSpec {
		return nil, fmt.Errorf("%s has %d bytes", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var spec rspec.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return nil, fmt.Errorf("%s: no process, root or linux section", path)
	}
	return &spec, nil
}
