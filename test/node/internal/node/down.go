package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	remote "k8s.io/cri-client/pkg"
)

// podsLimit is how long the orderly end of all pods may take.
const podsLimit = 60 * time.Second

// Down stops the node and removes everything it made. Pods are removed through CRI-O first. What is left then is
// removed by force and returned as warnings: a test that expects an orderly end can check for none.
func (n *Node) Down(ctx context.Context) (warnings []error, err error) {
	var left []error
	outside := n.outside()
	if d, ok := n.Daemons[daemonCRIO]; ok && d.Alive() {
		if err := n.removePods(ctx); err != nil {
			left = append(left, err)
		}
	}
	left = append(left, n.stopDaemons()...)
	left = append(left, n.leftovers(outside)...)
	return left, n.dismantle(context.WithoutCancel(ctx), outside, false)
}

// removePods stops and removes all pods, without their grace periods.
func (n *Node) removePods(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, podsLimit)
	defer cancel()
	r, err := remote.NewRemoteRuntimeService("unix://"+n.CRIO.Socket, callLimit, nil, nil)
	if err != nil {
		return fmt.Errorf("connect to crio: %w", err)
	}
	containers, err := r.ListContainers(ctx, nil)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	var errs []error
	for _, c := range containers {
		if err := r.StopContainer(ctx, c.GetId(), 0); err != nil {
			errs = append(errs, fmt.Errorf("stop container %s: %w", c.GetId(), err))
		}
	}
	pods, err := r.ListPodSandbox(ctx, nil)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list pods: %w", err))...)
	}
	for _, p := range pods {
		if err := r.StopPodSandbox(ctx, p.GetId()); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %s: %w", p.GetId(), err))
		}
		if err := r.RemovePodSandbox(ctx, p.GetId()); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", p.GetId(), err))
		}
	}
	return errors.Join(errs...)
}

// stopDaemons stops what tests have started before CRI-O, and the registries last.
func (n *Node) stopDaemons() []error {
	last := []string{daemonCRIO, daemonRegistry, daemonAuthRegistry}
	var names []string
	for name := range n.Daemons {
		if !slices.Contains(last, name) {
			names = append(names, name)
		}
	}
	var errs []error
	for _, name := range append(names, last...) {
		if err := n.Stop(name, unix.SIGTERM); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// dismantle removes by force whatever is left of the node: processes, mounts, cgroups, the paths outside its folder,
// the bridge and the files. The bridge reserves the node's number, so it goes only when all before it is gone; and no
// file is deleted while something is still mounted among them.
func (n *Node) dismantle(ctx context.Context, outside []string, keepLogs bool) error {
	err := errors.Join(n.killProcesses(), n.unmount(), n.removeCgroups(), removeOutside(outside))
	if err == nil {
		err = n.Network.remove(ctx)
	}
	if err != nil {
		return fmt.Errorf("dismantle %s: %w", n.Dir, err)
	}
	return n.removeFiles(keepLogs)
}

func (n *Node) removeFiles(keepLogs bool) error {
	if mounts, err := n.mounts(); err != nil || len(mounts) > 0 {
		return fmt.Errorf("files in %s stay: still mounted: %v: %w", n.Dir, mounts, errors.Join(err, unix.EBUSY))
	}
	if !keepLogs {
		if err := os.RemoveAll(n.Dir); err != nil {
			return fmt.Errorf("remove node folder: %w", err)
		}
		return nil
	}
	entries, err := os.ReadDir(n.Dir)
	if err != nil {
		return fmt.Errorf("remove node folder: %w", err)
	}
	for _, e := range entries {
		if e.Name() == "log" {
			continue
		}
		if err := os.RemoveAll(n.path(e.Name())); err != nil {
			return fmt.Errorf("remove node folder: %w", err)
		}
	}
	return nil
}
