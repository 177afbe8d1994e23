package podrun

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/taskclient"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// Stop ends a container as its image wants it, and kills it after the grace. It returns
// once the container's monitor has written down how it ended.
func (e *Engine) Stop(ctx context.Context, c bundles.Container, grace time.Duration) error {
	if alive, err := e.Alive(c.ID); err != nil || !alive {
		return err
	}
	shim, err := e.dial(ctx, c)
	if err == nil {
		defer func() { _ = shim.Close() }() // a connection
		err = stopTask(ctx, shim, c, grace)
	}
	if err != nil && !errdefs.Is(err, errdefs.NotFound) && !errdefs.Is(err, errdefs.Unavailable) {
		return err
	}
	// One that was not there yet is being started: its monitor sees to it, or fails.
	within, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	return awaitFree(within, e.lockOf(c.ID))
}

func stopTask(ctx context.Context, shim *taskclient.Shim, c bundles.Container, grace time.Duration) error {
	if err := shim.Kill(ctx, c.ID, "", stopSignal(c.Labels[stopLabel]), false); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	_, err := shim.Wait(within, c.ID, "")
	if err == nil || within.Err() == nil || ctx.Err() != nil {
		return err
	}
	return shim.Kill(ctx, c.ID, "", unix.SIGKILL, true)
}

// stopSignal is SIGTERM where an image names none that there is.
func stopSignal(name string) syscall.Signal {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s
	}
	return unix.SIGTERM
}

// Remove removes a container; one that runs is refused with InUse, unless it is to be
// killed first.
func (e *Engine) Remove(ctx context.Context, c bundles.Container, kill bool) error {
	alive, err := e.Alive(c.ID)
	if err != nil {
		return err
	}
	if alive && !kill {
		return errdefs.Newf(errdefs.InUse, "remove container "+c.Name, "it runs: stop it, or remove it with --force")
	}
	if alive {
		if err := e.Stop(ctx, c, 0); err != nil {
			return err
		}
	}
	life, err := tryLock(e.lockOf(c.ID))
	if errors.Is(err, errHeld) {
		return errdefs.Newf(errdefs.InUse, "remove container "+c.Name, "its husk is still at work")
	}
	if err != nil {
		return err
	}
	defer life.release()
	return e.leave(ctx, c.Pod.ID, c.ID, true)
}

// RemovePod removes a pod with its containers, as Remove does.
func (e *Engine) RemovePod(ctx context.Context, p Pod, kill bool) error {
	for _, c := range p.Containers {
		alive, err := e.Alive(c.ID)
		if err != nil {
			return err
		}
		if alive && !kill {
			return errdefs.Newf(errdefs.InUse, "remove pod "+p.Name, "container %s runs: stop it, or remove the pod with --force", c.Name)
		}
	}
	var errs []error
	for _, c := range p.Containers {
		errs = append(errs, e.Remove(ctx, c, kill))
	}
	return errors.Join(errs...)
}
