package podrun

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// errAgain says that a pod was made, or removed, by somebody else meanwhile.
var errAgain = errors.New("the pod has changed")

// maxAgain is how often joining a pod begins anew. Each time somebody else has made
// progress; without an end a script that makes and removes a pod could hold another up.
const maxAgain = 100

// member is a container that was just made, in a pod that runs.
type member struct {
	bundles.Container
	pod podInfo
}

// join makes the record of the container id, and its pod if that is not there, and starts
// the pod if it does not run. The caller holds the container's lock.
func (e *Engine) join(ctx context.Context, o Options, id string) (member, error) {
	for range maxAgain {
		m, err := e.tryJoin(ctx, o, id)
		if !errors.Is(err, errAgain) {
			return m, err
		}
	}
	return member{}, errdefs.Newf(errdefs.Unavailable, "join pod "+o.Pod, "others make and remove it all the time")
}

func (e *Engine) tryJoin(ctx context.Context, o Options, id string) (_ member, err error) {
	podID := ""
	if o.Pod != "" {
		if podID, err = e.findPod(ctx, o.Pod); err != nil {
			return member{}, err
		}
	}
	made := podID == ""
	if made {
		podID = bundles.NewID()
	}
	l, err := takeLock(ctx, e.podLock(podID))
	if err != nil {
		return member{}, err
	}
	defer l.release()
	var pod podInfo
	if made {
		pod, err = e.makePod(ctx, o, podID)
	} else {
		pod, err = e.getPod(ctx, podID)
	}
	if err != nil {
		return member{}, err
	}
	m := member{pod: pod}
	if err = e.fits(o, pod); err == nil {
		m.Container, err = e.makeMember(ctx, o, id, pod)
	}
	if err == nil {
		err = e.ensureUp(ctx, pod, id)
	}
	if err != nil {
		// On its own: a user's Ctrl-C is the reason, not a reason to leave it.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		return member{}, errors.Join(err, e.leaveLocked(clean, podID, id, true))
	}
	m.Container, err = e.Store.Get(ctx, id) // with the pod's addresses
	m.pod.Pod = m.Pod
	return m, err
}

// findPod returns the ID of a pod with this very name, or "".
func (e *Engine) findPod(ctx context.Context, name string) (string, error) {
	list, err := e.list(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range list {
		if c.Sandbox && c.Pod.Name == name {
			return c.ID, nil
		}
	}
	return "", nil
}

// getPod returns a pod whose lock the caller holds.
func (e *Engine) getPod(ctx context.Context, id string) (podInfo, error) {
	c, err := e.Store.Get(ctx, id)
	if errdefs.Is(err, errdefs.NotFound) {
		return podInfo{}, errAgain
	}
	if err == nil && (!own(c) || !c.Sandbox || c.ID != id || c.Pod.ID != id) {
		return podInfo{}, errdefs.Newf(errdefs.Unsupported, "look at pod "+id, "it is not of husk run")
	}
	if c.Pod.Netns != "" {
		c.Pod.Netns = e.netns(id) // root mounts there: its own path, whatever the record says
	}
	return podInfo{c, e.podDir(id)}, err
}

// makePod makes the record of a pod.
func (e *Engine) makePod(ctx context.Context, o Options, id string) (podInfo, error) {
	name := o.Pod
	if name == "" {
		name = o.Name
	}
	pod := podInfo{dir: e.podDir(id)}
	var err error
	if o.Network, err = e.network(ctx, o.Network); err != nil {
		return pod, err
	}
	group, err := podCgroup(o.CgroupParent, id)
	if err != nil {
		return pod, err
	}
	host, err := hostname(name, id, o.Network)
	if err != nil {
		return pod, err
	}
	pod.Container = bundles.Container{
		ID: id, Name: sandboxName(name), Sandbox: true, Runtime: o.Runtime, Labels: map[string]string{ownLabel: "pod"},
		Pod: bundles.Pod{ID: id, Name: name, Hostname: host, Network: o.Network, CgroupParent: group},
	}
	if o.Network != NetworkHost {
		pod.Pod.Netns = e.netns(id)
	}
	spec, err := e.sandboxSpec(pod)
	if err != nil {
		return pod, err
	}
	pod.Container, err = e.Store.Create(ctx, pod.Container, spec)
	if errors.Is(err, bundles.ErrExists) && o.Pod != "" {
		return pod, errAgain
	}
	return pod, err
}

// fits refuses to join a pod that is another than was asked for.
func (e *Engine) fits(o Options, pod podInfo) error {
	op := "join pod " + pod.Pod.Name
	switch {
	case o.Network != "" && o.Network != pod.Pod.Network:
		return errdefs.Newf(errdefs.InvalidArgument, op, "its network is %s, not %s", pod.Pod.Network, o.Network)
	case o.Runtime != pod.Runtime:
		return errdefs.Newf(errdefs.InvalidArgument, op, "its runtime is %s (%s), not %s (%s)",
			pod.Runtime.Name, pod.Runtime.Path, o.Runtime.Name, o.Runtime.Path)
	}
	return nil
}

func (e *Engine) makeMember(ctx context.Context, o Options, id string, pod podInfo) (bundles.Container, error) {
	c := bundles.Container{
		ID: id, Name: o.Name, Pod: pod.Pod, Runtime: pod.Runtime,
		Image: bundles.Image{
			RecordID: o.Image.StorageID, ImageID: o.Image.ImageID(),
			Ref: o.Pulled.Pinned().String(), UserImage: o.Pulled.Reference.String(),
		},
		Terminal: o.Terminal, Stdin: o.IO.Stdin != nil, AutoRemove: o.AutoRemove, Labels: map[string]string{ownLabel: "member"},
	}
	spec, err := containerSpec(o, c, pod)
	if err != nil {
		return c, err
	}
	c.Args = spec.Process.Args
	if signal := spec.Annotations["org.opencontainers.image.stopSignal"]; signal != "" {
		c.Labels[stopLabel] = signal
	}
	return e.Store.Create(ctx, c, spec)
}

// ensureUp starts a pod that does not run, for its new member id. What a pod whose
// monitors were killed has left is removed first.
func (e *Engine) ensureUp(ctx context.Context, pod podInfo, id string) error {
	members, err := e.others(ctx, pod.ID, id)
	if err != nil {
		return err
	}
	alive, err := e.anyAlive(members)
	if err != nil || alive {
		return err
	}
	// A husk that was killed before it said so may have made half of it.
	_, err = os.Lstat(pod.dir)
	if pod.State.Status == bundles.StatusRunning || err == nil {
		if err := e.down(ctx, pod, members); err != nil {
			return err
		}
	}
	// Whoever finds it half way knows that there is something to take down.
	if _, err := e.Store.Update(ctx, pod.ID, starting); err != nil {
		return err
	}
	return e.up(ctx, pod)
}

// others are the members of a pod but its sandbox and the container id.
func (e *Engine) others(ctx context.Context, podID, id string) ([]bundles.Container, error) {
	members, err := e.Store.Members(ctx, podID)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, nil
	}
	return slices.DeleteFunc(members, func(c bundles.Container) bool { return c.Sandbox || c.ID == id || !own(c) }), err
}

func (e *Engine) anyAlive(members []bundles.Container) (bool, error) {
	for _, m := range members {
		if alive, err := e.Alive(m.ID); err != nil || alive {
			return alive, err
		}
	}
	return false, nil
}

// leave is the end of a container in its pod: the last one ends the pod. With remove its
// record goes too, and with the last record the pod's.
func (e *Engine) leave(ctx context.Context, podID, id string, remove bool) error {
	l, err := takeLock(ctx, e.podLock(podID))
	if err != nil {
		return err
	}
	defer l.release()
	return e.leaveLocked(ctx, podID, id, remove)
}

func (e *Engine) leaveLocked(ctx context.Context, podID, id string, remove bool) error {
	pod, err := e.getPod(ctx, podID)
	if errors.Is(err, errAgain) {
		return nil // it was never made, or is gone
	}
	if err != nil {
		return err
	}
	mine, err := e.Store.Get(ctx, id)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	there := err == nil
	others, err := e.others(ctx, podID, id)
	if err != nil {
		return err
	}
	alive, err := e.anyAlive(others)
	if err != nil {
		return err
	}
	if there {
		if err := e.destroy(ctx, mine); err != nil {
			return err
		}
	}
	if !alive && pod.State.Status != bundles.StatusExited {
		if err := e.down(ctx, pod, others); err != nil {
			return err
		}
	}
	if there && remove {
		if err := e.Store.Remove(ctx, id); err != nil {
			return err
		}
		there = false
	}
	if !there && len(others) == 0 {
		return e.Store.Remove(ctx, podID)
	}
	return nil
}
