package podrun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podnet"
	"github.com/husk-cri/husk/internal/taskclient"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// hostnamePattern is RFC 1123's, and hostnameLen what the kernel takes.
var hostnamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

const hostnameLen = 63

// hostname of a pod: its name, where that is one.
func hostname(name, id, network string) (string, error) {
	switch {
	case network == NetworkHost:
		return os.Hostname()
	case len(name) <= hostnameLen && hostnamePattern.MatchString(name):
		return name, nil
	default:
		return id[:12], nil
	}
}

// up starts the sandbox of a pod, whose lock the caller holds. What a failure leaves is for
// down.
func (e *Engine) up(ctx context.Context, pod podInfo) error {
	if err := os.MkdirAll(pod.dir, stateMode); err != nil {
		return err
	}
	host := pod.Pod.Network == NetworkHost
	files := podnet.FilesConfig{Hostname: pod.Pod.Hostname}
	if host || pod.Pod.Network == NetworkNone {
		files.ResolvConf = "/etc/resolv.conf"
	}
	if !host {
		if err := podnet.NewNetns(pod.Pod.Netns); err != nil {
			return err
		}
	}
	if !host && pod.Pod.Network != NetworkNone {
		result, err := e.Network.SetUp(ctx, e.attachment(pod.Pod))
		if err != nil {
			return err
		}
		files.IPs = result.IPs
		err = e.Store.UpdatePod(ctx, pod.ID, func(p *bundles.Pod) {
			p.IPs = nil
			for _, ip := range result.IPs {
				p.IPs = append(p.IPs, ip.String())
			}
		})
		if err != nil {
			return err
		}
	}
	if _, err := podnet.WriteFiles(pod.dir, files); err != nil {
		return err
	}
	return e.startSandbox(ctx, pod)
}

func (e *Engine) startSandbox(ctx context.Context, pod podInfo) error {
	var notes map[string]string
	bundle, err := e.Store.Finish(ctx, pod.ID, func(spec *rspec.Spec) error { notes = spec.Annotations; return nil })
	if err != nil {
		return err
	}
	shim, err := taskclient.Runtime{Path: pod.Runtime.Path}.Start(ctx, pod.ID, bundle, nil)
	if err != nil {
		return err
	}
	defer func() { _ = shim.Close() }() // a connection
	_, err = shim.Create(ctx, taskclient.CreateRequest{ID: pod.ID, Bundle: bundle, ConfigPath: pod.Runtime.ConfigPath, GuestPull: guestPull(notes)})
	if err != nil {
		return err
	}
	if _, err := shim.Start(ctx, pod.ID, ""); err != nil {
		return err
	}
	_, err = e.Store.Update(ctx, pod.ID, started)
	return err
}

func (e *Engine) attachment(p bundles.Pod) podnet.Attachment {
	return podnet.Attachment{PodID: p.ID, Name: p.Name, Netns: e.netns(p.ID), Network: p.Network}
}

// down ends the sandbox of a pod, whose lock the caller holds, and whatever of its members
// runs; records stay. It may be called at any time and again: it goes by what is there.
func (e *Engine) down(ctx context.Context, pod podInfo, members []bundles.Container) error {
	var errs []error
	for _, m := range members {
		errs = append(errs, e.destroy(ctx, m))
	}
	errs = append(errs, e.destroy(ctx, pod.Container))
	if n := pod.Pod.Network; n != NetworkHost && n != NetworkNone {
		errs = append(errs, awaitOrphans(ctx, pluginOf(pod.ID)), e.Network.TearDown(ctx, e.attachment(pod.Pod)))
	}
	errs = append(errs, podnet.RemoveNetns(e.netns(pod.ID)))
	errs = append(errs, removeCgroup(ctx, pod.Pod))
	if err := errors.Join(errs...); err != nil {
		return err // the sandbox stays as it is in the store, for the next one to try again
	}
	if err := removeTree(pod.dir); err != nil {
		return err
	}
	_, err := e.Store.Update(ctx, pod.ID, exited(0, ""))
	return err
}

// destroy ends a container and makes its runtime forget it. One that was never started is
// no error.
func (e *Engine) destroy(ctx context.Context, c bundles.Container) error {
	bundle, err := e.Store.RunDir(c.ID)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(bundle, "config.json")); err == nil {
		if err := e.destroyTask(ctx, c, bundle); err != nil {
			return fmt.Errorf("end container %s: %w", c.Name, err)
		}
	}
	if err := removeTree(e.streams(c)); err != nil {
		return err
	}
	return emptyDir(bundle)
}

// streams is where the FIFOs of a container are.
func (e *Engine) streams(c bundles.Container) string {
	return filepath.Join(e.podDir(c.Pod.ID), "io", c.ID)
}

func (e *Engine) destroyTask(ctx context.Context, c bundles.Container, bundle string) error {
	runtime := taskclient.Runtime{Path: c.Runtime.Path}
	shim, err := awaitShim(ctx, bundle)
	if errdefs.Is(err, errdefs.Unavailable) {
		return deleteTask(ctx, runtime, c.ID, bundle)
	}
	if err != nil {
		return err
	}
	defer func() { _ = shim.Close() }() // a connection
	if err := forget(ctx, shim, c); err != nil {
		if errdefs.Is(err, errdefs.Unavailable) && ctx.Err() == nil {
			return deleteTask(ctx, runtime, c.ID, bundle) // it ended meanwhile
		}
		return err
	}
	if !c.Sandbox {
		return nil
	}
	if err := shim.Shutdown(ctx, c.ID); err != nil {
		return err
	}
	return awaitEnd(ctx, shim.Address())
}

// deleteTask has a runtime clean up after its shim, which is gone. Where the runtime is gone
// too, nobody can: what it has mounted still keeps the files from being removed.
func deleteTask(ctx context.Context, runtime taskclient.Runtime, id, bundle string) error {
	err := runtime.Delete(ctx, id, bundle)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	return err
}

// forget kills a container and deletes it from its shim.
func forget(ctx context.Context, shim *taskclient.Shim, c bundles.Container) error {
	state, err := shim.State(ctx, c.ID)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if state.Status != taskclient.StatusStopped {
		if err := shim.Kill(ctx, c.ID, "", unixKill, true); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return err
		}
		within, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		if state.Status != taskclient.StatusCreated {
			if _, err := shim.Wait(within, c.ID, ""); err != nil && !errdefs.Is(err, errdefs.NotFound) {
				return err
			}
		}
	}
	_, err = shim.Delete(ctx, c.ID, "")
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	return err
}

// awaitEnd waits until a shim that was told to end has ended.
func awaitEnd(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for {
		shim, err := taskclient.Dial(ctx, address)
		if errdefs.Is(err, errdefs.Unavailable) {
			return nil
		}
		if err != nil {
			return err
		}
		_ = shim.Close()
		if err := pauseFor(ctx, emptyPoll); err != nil {
			return fmt.Errorf("wait for the end of the shim: %w", err)
		}
	}
}
