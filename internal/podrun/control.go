package podrun

import (
	"context"
	"slices"
	"strings"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podrun/logs"
	"github.com/husk-cri/husk/internal/taskclient"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// List returns the containers, the oldest first: those of users, without the pods' own.
func (e *Engine) List(ctx context.Context) ([]bundles.Container, error) {
	list, err := e.list(ctx)
	return slices.DeleteFunc(list, func(c bundles.Container) bool { return c.Sandbox }), err
}

// Pod is a pod and its containers.
type Pod struct {
	bundles.Pod
	Runtime    bundles.Runtime
	Containers []bundles.Container
	// Running says whether a container of it does.
	Running bool
}

// Pods returns the pods, the oldest first.
func (e *Engine) Pods(ctx context.Context) ([]Pod, error) {
	list, err := e.list(ctx)
	if err != nil {
		return nil, err
	}
	var pods []Pod
	for _, c := range list {
		if !c.Sandbox {
			continue
		}
		p := Pod{Pod: c.Pod, Runtime: c.Runtime, Running: c.State.Status == bundles.StatusRunning}
		for _, m := range list {
			if !m.Sandbox && m.Pod.ID == c.ID {
				p.Containers = append(p.Containers, m)
			}
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Find returns the containers that a name or the beginning of an ID stands for: one
// container, or those of a pod. A container wins over the pod of its own that has its name.
// NotFound for neither.
func (e *Engine) Find(ctx context.Context, name string) ([]bundles.Container, error) {
	c, err := e.FindContainer(ctx, name)
	if err == nil {
		return []bundles.Container{c}, nil
	}
	if !errdefs.Is(err, errdefs.NotFound) {
		return nil, err
	}
	p, podErr := e.FindPod(ctx, name)
	if podErr != nil {
		return nil, errdefs.Newf(errdefs.NotFound, "find "+name, "no container and no pod by this name (husk ps -a, husk pods)")
	}
	return p.Containers, nil
}

// FindContainer returns a container by its name or the beginning of its ID.
func (e *Engine) FindContainer(ctx context.Context, name string) (bundles.Container, error) {
	c, err := e.Store.Get(ctx, name)
	if err == nil && (c.Sandbox || !own(c)) {
		err = errdefs.New(errdefs.NotFound, "find container "+name, nil)
	}
	return c, err
}

// FindPod returns a pod by its name or the beginning of its ID.
func (e *Engine) FindPod(ctx context.Context, name string) (Pod, error) {
	pods, err := e.Pods(ctx)
	if err != nil {
		return Pod{}, err
	}
	var found []Pod
	for _, p := range pods {
		if p.Name == name || p.ID == name {
			return p, nil
		}
		if name != "" && strings.HasPrefix(p.ID, name) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return Pod{}, errdefs.New(errdefs.NotFound, "find pod "+name, nil)
	case 1:
		return found[0], nil
	default:
		return Pod{}, errdefs.Newf(errdefs.InvalidArgument, "find pod "+name, "%d pods have such IDs", len(found))
	}
}

// dial connects to the shim of a container.
func (e *Engine) dial(ctx context.Context, c bundles.Container) (*taskclient.Shim, error) {
	bundle, err := e.Store.RunDir(c.ID)
	if err != nil {
		return nil, err
	}
	address, err := taskclient.Address(bundle)
	if err != nil {
		return nil, err
	}
	return taskclient.Dial(ctx, address)
}

// Logs prints what a container wrote.
func (e *Engine) Logs(ctx context.Context, c bundles.Container, follow bool, o logs.ReadOptions) error {
	dir, err := e.Store.Dir(c.ID)
	if err != nil {
		return err
	}
	if follow {
		o.Ended = func() (bool, error) {
			alive, err := e.Alive(c.ID)
			return !alive, err
		}
	}
	return logs.Read(ctx, dir, o)
}
