// Package keeper is the small process that stands between CRI-O and a pod's shim.
//
// It starts the shim, passes CRI-O's connections on to it, and outlives it: when
// the shim is killed it kills and removes the pod's containers and then answers
// CRI-O for them, so that the pod can be stopped and removed as any other. When
// the pod is removed nothing of it is left, the keeper included.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
)

const (
	// Command is the first argument that makes a binary run [Keeper.Run].
	Command = "husk-keeper"
	// SocketFD is the descriptor on which a keeper inherits the pod's listening socket.
	SocketFD = 3
	// lastWords is how long the keeper lets its last answer reach CRI-O.
	lastWords = 100 * time.Millisecond
)

// The descriptors that a shim inherits from its keeper.
const (
	// TaskFD is the socket of the task service: the containerd framework serves
	// whatever it finds there.
	TaskFD = 3 + iota
	// PublicFD is the socket that CRI-O connects to, for a shim that outlives its keeper.
	PublicFD
	// AliveFD is a pipe that is readable, with end of file, once the keeper is gone.
	AliveFD
)

var errOrphan = errors.New("its keeper was killed with it")

// Keeper keeps one pod.
type Keeper struct {
	// Pod is the pod.
	Pod pod.Pod
	// Shim starts the shim; the keeper adds the descriptors. Nil is for a pod whose shim
	// is gone, and whose keeper was, too.
	Shim *exec.Cmd
}

// Run serves CRI-O on the inherited socket until the pod is gone.
func (k Keeper) Run(ctx context.Context) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE) // CRI-O's session and its log are not ours to die with
	// The credentials of pulls pass through this process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	syscall.CloseOnExec(SocketFD)
	public := os.NewFile(SocketFD, "shim.sock")
	listener, err := net.FileListener(public)
	if err != nil {
		return fmt.Errorf("take over the pod's socket: %w", err)
	}
	if k.Shim == nil {
		return k.adopt(ctx, listener)
	}
	service, err := k.listen()
	if err != nil {
		return err
	}
	alive, err := k.start(service, public)
	if err != nil {
		return errors.Join(err, k.Pod.Remove())
	}
	defer func() { _ = alive.Close() }() // held open until here: its end tells the shim
	dead := make(chan struct{})
	relay := Relay{Dial: k.dial, Dead: dead}
	go func() { log.G(ctx).WithError(relay.Serve(ctx, listener)).Error("the pod's socket failed") }()
	shimErr := k.Shim.Wait()
	if err := k.survive(ctx, dead, shimErr); err != nil {
		return err
	}
	return k.Pod.Remove()
}

// adopt answers for a pod whose shim is gone. CRI-O's connections were the former
// keeper's and are lost: the first calls are those of a CRI-O that was restarted.
func (k Keeper) adopt(ctx context.Context, listener net.Listener) error {
	records, err := k.Pod.List()
	if err != nil {
		return err
	}
	// CRI-O removes the bundle with its own record of a container: nobody will ask.
	for _, r := range records {
		if _, err := os.Stat(r.Bundle); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(r.Destroy(ctx), k.Pod.Drop(r.ID)); err != nil {
			log.G(ctx).WithError(err).Error("clean up a container that CRI-O does not know")
		}
	}
	dead := make(chan struct{})
	go func() {
		<-dead // until then who connects waits
		relay := Relay{Dial: k.dial, Dead: dead}
		log.G(ctx).WithError(relay.Serve(ctx, listener)).Error("the pod's socket failed")
	}()
	if err := k.survive(ctx, dead, errOrphan); err != nil {
		return err
	}
	return k.Pod.Remove()
}

func (k Keeper) dial(ctx context.Context) (net.Conn, error) {
	return Dial(ctx, k.Pod)
}

// Dial connects to the task service of a pod, not through its keeper.
func Dial(ctx context.Context, p pod.Pod) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", p.TaskSocket())
}

func (k Keeper) listen() (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: k.Pod.TaskSocket(), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the task service: %w", err)
	}
	return l, nil
}

// start starts the shim. Its socket is listening before it runs, so that a client
// that comes early waits instead of failing. The shim knows that the keeper lives
// as long as hold is open.
func (k Keeper) start(service *net.UnixListener, public *os.File) (hold *os.File, err error) {
	socket, err := service.File()
	if err != nil {
		return nil, fmt.Errorf("pass the socket of the task service on: %w", err)
	}
	alive, hold, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the shim: %w", err)
	}
	k.Shim.ExtraFiles = []*os.File{socket, public, alive}
	if err := k.Shim.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the shim: %w", err), hold.Close())
	}
	service.SetUnlinkOnClose(false)
	return hold, errors.Join(socket.Close(), alive.Close(), service.Close())
}

// survive cleans up after a shim that ended with containers left and answers for
// them until CRI-O has deleted them. It returns at once when the shim left none.
func (k Keeper) survive(ctx context.Context, dead chan struct{}, shimErr error) error {
	records, err := k.Pod.List()
	if err != nil {
		return err
	}
	if len(records) == 0 {
		return nil
	}
	died := time.Now()
	log.G(ctx).WithError(shimErr).Errorf("the shim of pod %s ended with %d containers: killing them", k.Pod.ID(), len(records))
	var wg sync.WaitGroup
	for _, r := range records {
		wg.Go(func() {
			if err := r.Destroy(ctx); err != nil {
				log.G(ctx).WithError(err).Error("clean up after the shim")
			}
		})
	}
	wg.Wait()
	// Layers on a disk must not wait there until CRI-O deletes the pod.
	if err := k.Pod.RemoveStore(); err != nil {
		log.G(ctx).WithError(err).Error("clean up after the shim")
	}
	if err := os.Remove(k.Pod.TaskSocket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take the place of the task service: %w", err)
	}
	listener, err := k.listen()
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()), ttrpc.WithUnaryServerInterceptor(EscapeErrors))
	if err != nil {
		return fmt.Errorf("take the place of the task service: %w", err)
	}
	empty := make(chan struct{})
	taskapi.RegisterTaskService(server, &afterlife{pod: k.Pod, died: died, empty: sync.OnceFunc(func() { close(empty) })})
	shimv1.RegisterImagesService(server, lostImages{k.Pod.ID()})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(ctx, listener) }()
	close(dead)
	for _, r := range records {
		if !r.ExitedAt.IsZero() {
			continue
		}
		if err := r.AnnounceExit(); err != nil {
			log.G(ctx).WithError(err).Warn("CRI-O will notice later")
		}
	}
	select {
	case err := <-failed:
		return fmt.Errorf("answer for a dead shim: %w", err)
	case <-empty:
		time.Sleep(lastWords)
		return nil
	}
}
