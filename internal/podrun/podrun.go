// Package podrun runs containers without CRI-O and without Kubernetes: pods with the
// node's CNI networks, containers of layer-less images, any shim v2 (docs/adr/0015-husk-run.md).
//
// One process is the monitor of one container: it holds a lock for the container's life,
// moves its output and its signals, and writes down how it ended. Whatever such a process
// leaves behind when it is killed, [Engine.Sweep] of the next one finds by the lock that
// nobody holds any more, and removes.
package podrun

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podnet"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/imageref"
)

const (
	// DefaultCgroupParent holds the cgroups of pods. It has no process of its own, which
	// cgroup v2 would not allow.
	DefaultCgroupParent = "/husk-run"
	// NetworkHost is the host's own network.
	NetworkHost = "host"
	// NetworkNone is one with nothing but a loopback device.
	NetworkNone = "none"

	// cleanTimeout bounds the cleaning up after one container or pod: a shim that hangs
	// must not keep husk, and with it the user's terminal, for ever.
	cleanTimeout = time.Minute
	// killTimeout is how long a process may take to die of SIGKILL, and a shim to end.
	killTimeout = 10 * time.Second

	sandboxSuffix = ".pod"
	// ownLabel is on every container of this package. Other programs keep containers by
	// package bundles too: those are never looked at, let alone swept.
	ownLabel  = "husk.dev/run"
	stopLabel = "husk.dev/stop-signal"
)

// layerPuller has a pod's shim pull the layers of an image.
type layerPuller interface {
	Pull(ctx context.Context, req sandboxes.PullRequest) (sandboxes.Image, error)
}

var _ layerPuller = sandboxes.Client{}

// Engine runs containers. Its methods may be called at once, by any number of processes.
type Engine struct {
	// Store keeps containers and pods.
	Store *bundles.Store
	// Network is the node's CNI configuration.
	Network podnet.Config
	// StateDir is where running pods keep what does not outlive the machine. It is the
	// store's own: pods that are not in the store are taken for lost.
	StateDir string
	// Layers asks shims to pull. Nil: [sandboxes.Client].
	Layers layerPuller
	// Self is the path of the husk binary, which is every pod's pause process.
	Self string
}

// podInfo is what the life of a pod needs of its sandbox container.
type podInfo struct {
	bundles.Container
	dir string
}

func (e *Engine) layers() layerPuller {
	if e.Layers == nil {
		return sandboxes.Client{}
	}
	return e.Layers
}

// lockOf is the lock that the monitor of a container holds.
func (e *Engine) lockOf(id string) string { return filepath.Join(e.StateDir, "locks", id) }

// podLock is held by who changes the state of a pod.
func (e *Engine) podLock(id string) string { return filepath.Join(e.StateDir, "locks", "pod-"+id) }

// podDir holds the pod's network namespace, files and FIFOs.
func (e *Engine) podDir(id string) string { return filepath.Join(e.StateDir, "pods", id) }

// own says whether this package made a container.
func own(c bundles.Container) bool { return c.Labels[ownLabel] != "" }

// netns is where a pod's network namespace is, whatever its record says: what is removed
// there as root must not be chosen by a record.
func (e *Engine) netns(id string) string { return filepath.Join(e.podDir(id), "netns") }

// list returns the containers that this package made, pods' own ones included.
func (e *Engine) list(ctx context.Context) ([]bundles.Container, error) {
	list, err := e.Store.List(ctx)
	return slices.DeleteFunc(list, func(c bundles.Container) bool { return !own(c) }), err
}

// Alive says whether a container has a monitor.
func (e *Engine) Alive(id string) (bool, error) { return held(e.lockOf(id)) }

// sandboxName is the name of a pod's own container. No other container may have one like
// it, so that a pod's name is free exactly if its sandbox's is.
func sandboxName(pod string) string { return pod + sandboxSuffix }

// autoName is the name of a container whose user gave none.
func autoName(ref imageref.Reference, id string) string {
	return filepath.Base(ref.Repository()) + "-" + id[:8]
}
