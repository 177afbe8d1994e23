package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/pod"
)

const (
	// sweepTimeout bounds a sweep: CRI-O's start waits for one.
	sweepTimeout = 5 * time.Second
	// maxOrphans bounds how many pods one sweep gives a keeper to, which is a process
	// each: on a node where many were killed at once the next sweeps do the rest.
	maxOrphans = 32
	// cgroupMount is where every distribution mounts cgroups, of either version.
	cgroupMount = "/sys/fs/cgroup"
	podsMode    = 0o700
)

// pullGroup is the name of a cgroup in which husk pulls metadata; the number is the pid
// of the husk that made it.
var pullGroup = regexp.MustCompile(`^husk-pull-([0-9]+)-[0-9]+$`)

// Sweep looks for what processes that were killed have left. A pod that lost its keeper
// and its shim gets a new keeper, which kills its containers and answers for them: then
// CRI-O, once it has been restarted, can stop and remove the pod as any other, where it
// would else panic each time kubelet asks it to (see docs/adr/0005-keeper.md). A pod's
// state without containers, and an empty cgroup of a pull, are removed.
//
// One sweep works at a time; a second does nothing.
func (m Manager) Sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	return errors.Join(m.sweepPods(ctx), sweepGroups(ctx, cgroupMount))
}

func (m Manager) sweepPods(ctx context.Context) error {
	unlock, err := m.lock(unix.LOCK_EX | unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(m.podsDir())
	if err != nil {
		return fmt.Errorf("look for pods: %w", err)
	}
	var errs []error
	for adopted := 0; len(entries) > 0 && adopted < maxOrphans && ctx.Err() == nil; entries = entries[1:] {
		p, err := pod.New(m.StateDir, entries[0].Name())
		if err != nil || !entries[0].IsDir() {
			continue // not a pod's
		}
		keeps, err := m.adopt(ctx, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("clean up pod %s: %w", p.ID(), err))
		}
		if keeps {
			adopted++
		}
	}
	return errors.Join(errs...)
}

// podsDir returns the directory that has one for each pod.
func (m Manager) podsDir() string {
	if m.StateDir == "" {
		return filepath.Join(pod.DefaultStateDir, "pods")
	}
	return filepath.Join(m.StateDir, "pods")
}

// lock keeps a sweep, which takes LOCK_EX, apart from the starts and ends of pods, which
// take LOCK_SH: a pod that is being started has a state and nobody who answers, as one
// that was killed has. how is as of flock(2).
func (m Manager) lock(how int) (unlock func(), err error) {
	if err := os.MkdirAll(m.podsDir(), podsMode); err != nil {
		return nil, fmt.Errorf("lock the pods: %w", err)
	}
	dir, err := os.Open(m.podsDir())
	if err != nil {
		return nil, fmt.Errorf("lock the pods: %w", err)
	}
	for {
		err = unix.Flock(int(dir.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the pods: %w", err), dir.Close())
	}
	return func() { _ = dir.Close() }, nil // which unlocks it
}

// kept says whether somebody holds a pod's socket: its keeper or its shim. It does not
// connect. On a busy machine that fails for want of time, or of room in the queue, and
// the end of a pod that lives would follow; and to wake them all for each sweep is dear.
// The kernel tells a socket of another type from one that is gone (unix(7)).
func kept(p pod.Pod) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: p.Socket()})
		_ = unix.Close(fd) // nothing was written
	}
	switch {
	case err == nil, errors.Is(err, unix.EPROTOTYPE):
		return true, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("look for the keeper of pod %s: %w", p.ID(), err)
}

// adopt gives a keeper to a pod that has none. One without containers is removed.
func (m Manager) adopt(ctx context.Context, p pod.Pod) (keeps bool, err error) {
	if lives, err := kept(p); err != nil || lives {
		return false, err
	}
	records, err := p.List()
	if err != nil {
		return false, err
	}
	if len(records) == 0 {
		return false, p.Remove()
	}
	if err := os.Remove(p.Socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, startKept(ctx, keeperArgs{Pod: p, Orphan: true})
}

// startKept listens on a pod's socket and starts the keeper that serves it.
func startKept(ctx context.Context, args keeperArgs) error {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: args.Pod.Socket(), Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for pod %s: %w", args.Pod.ID(), err)
	}
	listener.SetUnlinkOnClose(false)
	socket, err := listener.File()
	if err == nil {
		err = errors.Join(startKeeper(ctx, args, socket), socket.Close())
	}
	if err = errors.Join(err, listener.Close()); err != nil {
		return fmt.Errorf("start the keeper of pod %s: %w", args.Pod.ID(), err)
	}
	return nil
}

// sweepGroups removes the groups of pulls whose husk is gone. One with a process in it
// stays: the kernel refuses.
func sweepGroups(ctx context.Context, root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // groups come and go
		}
		match := pullGroup.FindStringSubmatch(d.Name())
		if match == nil {
			return nil
		}
		if _, err := os.Stat("/proc/" + match[1]); errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(path)
		}
		return fs.SkipDir
	})
}
