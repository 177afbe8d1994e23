package shim

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull"
)

const (
	// maxOpenPulls bounds the calls of PullImage that are open in a pod, at work or
	// waiting: each holds its memory and its credentials until it is done.
	maxOpenPulls = 128
	// pullOOMScore makes a child of PullImage the first to go where memory is short: a
	// pull is tried again, a container of the pod is not.
	pullOOMScore = 1000
	// noSlot is the slot of a pull that waits for one, and of those that need none.
	noSlot = -1
)

// images knows what a pod pulls, and where. Its zero value is ready.
type images struct {
	mu sync.Mutex
	// changed is closed at the next change; nil while nobody waits for one.
	changed chan struct{}
	// sandbox is the pod's; nil before it is created.
	sandbox *podSandbox
	// over says why PullImage is refused from now on; nil while it is not. ended is set
	// when everything is, because the store goes.
	over  error
	ended bool
	// pulls are those under way, the oldest first.
	pulls []*pull
	// removing is set while images are being removed.
	removing bool

	// store is held for reading by who looks into the pod's store in this process, and
	// by who closes it.
	store sync.RWMutex
}

// podSandbox is the pod as its sandbox container has it.
type podSandbox struct {
	place sandbox.Place
	cfg   Config
	// identity is whose pod it is.
	identity podIdentity
}

// pull is one under way. What changes of it is guarded by images.mu.
type pull struct {
	reference string
	// container is the one that is being created from the image; empty for PullImage.
	container string
	started   time.Time
	// abort ends the pull.
	abort context.CancelCauseFunc
	// working is set when it waits no longer. slot is then which of [pod.MaxPulls] it
	// is, for PullImage.
	working  bool
	slot     int
	progress layerpull.Progress
	// news has room for one signal that there is progress; nil where nobody waits.
	news chan struct{}
}

// lock takes i.mu as soon as ready, which is asked with i.mu held, says so. When ctx
// ends before that, it returns why, and i.mu is free.
func (i *images) lock(ctx context.Context, ready func() bool) error {
	i.mu.Lock()
	for !ready() {
		if i.changed == nil {
			i.changed = make(chan struct{})
		}
		changed := i.changed
		i.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		i.mu.Lock()
	}
	return nil
}

// unlock gives i.mu back after a change.
func (i *images) unlock() {
	if i.changed != nil {
		close(i.changed)
		i.changed = nil
	}
	i.mu.Unlock()
}

// enter lists the pull and waits for its turn, as long as ctx does. After a nil error,
// leave must be called.
func (i *images) enter(ctx context.Context, p *pull) error {
	if err := i.list(p); err != nil {
		return err
	}
	err := i.lock(ctx, func() bool { return i.mayWork(p) })
	if err != nil {
		i.leave(p)
		return err
	}
	p.working = true
	if p.container == "" {
		p.slot = i.freeSlot()
	}
	i.unlock()
	return nil
}

func (i *images) list(p *pull) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	p.slot = noSlot
	if i.ended || p.container == "" && i.over != nil {
		return i.over
	}
	open := 0
	for _, other := range i.pulls {
		if other.container == "" {
			open++
		}
	}
	if p.container == "" && open >= maxOpenPulls {
		return errdefs.Newf(errdefs.Unavailable, "wait for other pulls of the pod", "%d are waiting", open)
	}
	i.pulls = append(i.pulls, p)
	return nil
}

// mayWork says whether it is the pull's turn: nothing is being removed, and for
// PullImage a slot is free and nobody has waited for one longer.
func (i *images) mayWork(p *pull) bool {
	if i.removing {
		return false
	}
	if p.container != "" {
		return true
	}
	first := slices.IndexFunc(i.pulls, func(o *pull) bool { return o.container == "" && !o.working })
	return i.pulls[first] == p && i.freeSlot() != noSlot
}

func (i *images) freeSlot() int {
	for slot := range pod.MaxPulls {
		if !slices.ContainsFunc(i.pulls, func(o *pull) bool { return o.slot == slot }) {
			return slot
		}
	}
	return noSlot
}

// leave ends what enter began.
func (i *images) leave(p *pull) {
	i.mu.Lock()
	defer i.unlock()
	i.pulls = slices.DeleteFunc(i.pulls, func(o *pull) bool { return o == p })
}

// tell notes how far a pull is. It never waits.
func (i *images) tell(p *pull, progress layerpull.Progress) {
	i.mu.Lock()
	p.progress = progress
	i.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func (i *images) progressOf(p *pull) layerpull.Progress {
	i.mu.Lock()
	defer i.mu.Unlock()
	return p.progress
}

// underWay returns copies of the pulls, the oldest first.
func (i *images) underWay() []pull {
	i.mu.Lock()
	defer i.mu.Unlock()
	list := make([]pull, 0, len(i.pulls))
	for _, p := range i.pulls {
		list = append(list, *p)
	}
	return list
}

// settle makes the pod's sandbox known: from now on there is a place to pull in.
func (i *images) settle(sandbox podSandbox) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sandbox = &sandbox
}

// known returns the pod's sandbox; nil before it is created.
func (i *images) known() *podSandbox {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.sandbox
}

// stop refuses PullImage from now on, for the given reason, and ends the calls that are
// open.
func (i *images) stop(why error) {
	i.mu.Lock()
	defer i.unlock()
	if i.over == nil {
		i.over = why
	}
	for _, p := range i.pulls {
		if p.container == "" {
			p.abort(i.over)
		}
	}
}

// end ends every pull and waits until they are gone, and until nothing is being removed.
// From now on nobody uses the store.
func (i *images) end(ctx context.Context, why error) error {
	i.stop(why)
	i.mu.Lock()
	i.ended = true
	for _, p := range i.pulls {
		p.abort(why)
	}
	i.unlock()
	if err := i.lock(ctx, func() bool { return len(i.pulls) == 0 && !i.removing }); err != nil {
		return err
	}
	i.unlock()
	return nil
}

// remove runs f when no pull is at work, and keeps pulls from working meanwhile: a
// layer must not go while somebody counts on it.
func (i *images) remove(ctx context.Context, f func() error) error {
	idle := func() bool {
		return !i.removing && !slices.ContainsFunc(i.pulls, func(p *pull) bool { return p.working })
	}
	if err := i.lock(ctx, idle); err != nil {
		return err
	}
	if i.ended {
		defer i.mu.Unlock()
		return i.over
	}
	i.removing = true
	i.unlock()
	defer func() {
		i.mu.Lock()
		i.removing = false
		i.unlock()
	}()
	return f()
}
