package podrun

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podnet"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// killedReason is said of a container whose monitor was killed, or went with the machine.
const killedReason = "its husk was killed"

// Sweep removes what killed monitors, and a machine that went down, have left: processes,
// shims, networks, cgroups, files. Their containers have then exited, or are gone if they
// were to be removed. Pods that somebody is at work on are left to him. An error is about
// what could not be removed; the next Sweep tries again.
func (e *Engine) Sweep(ctx context.Context) error {
	_, err := e.Store.Sweep(ctx)
	errs := []error{err}
	list, err := e.Store.List(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	pods := map[string][]bundles.Container{}
	for _, c := range list {
		if own(c) {
			pods[c.Pod.ID] = append(pods[c.Pod.ID], c)
		}
	}
	for id, members := range pods {
		if !suspect(members) {
			continue
		}
		if err := e.sweepPod(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("clean up pod %s: %w", members[0].Pod.Name, err))
		}
	}
	return errors.Join(append(errs, e.sweepState(ctx, pods))...)
}

// suspect says whether a pod may have something to clean up: all of it is at rest only if
// every container has exited, and stays.
func suspect(members []bundles.Container) bool {
	for _, m := range members {
		if m.State.Status != bundles.StatusExited || m.AutoRemove {
			return true
		}
	}
	return len(members) == 1 && members[0].Sandbox
}

// sweepPod cleans up one pod, unless somebody is at work on it.
func (e *Engine) sweepPod(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	l, err := tryLock(e.podLock(id))
	if errors.Is(err, errHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.release()
	pod, err := e.getPod(ctx, id)
	if errors.Is(err, errAgain) || errors.Is(err, bundles.ErrDamaged) {
		return e.sweepLost(ctx, id)
	}
	if err != nil {
		return err
	}
	members, err := e.others(ctx, id, "")
	if err != nil {
		return err
	}
	var dead []bundles.Container
	left := 0
	for _, m := range members {
		life, err := tryLock(e.lockOf(m.ID))
		if errors.Is(err, errHeld) {
			left++
			continue
		}
		if err != nil {
			return err
		}
		defer life.release() // few: those of one pod
		dead = append(dead, m)
	}
	if left == 0 && pod.State.Status != bundles.StatusExited {
		if err := e.down(ctx, pod, dead); err != nil {
			return err
		}
	}
	stay, err := e.bury(ctx, dead)
	if err != nil || left+stay > 0 {
		return err
	}
	return e.Store.Remove(ctx, id)
}

// bury ends what is left of containers without a monitor, and returns how many stay to be
// looked at.
func (e *Engine) bury(ctx context.Context, dead []bundles.Container) (stay int, err error) {
	for _, m := range dead {
		if m.State.Status != bundles.StatusExited || m.AutoRemove { // one may have been killed between the two
			if err := e.destroy(ctx, m); err != nil {
				return stay, err
			}
		}
		if m.AutoRemove {
			if err := e.Store.Remove(ctx, m.ID); err != nil {
				return stay, err
			}
			continue
		}
		stay++
		if _, err := e.Store.Update(ctx, m.ID, exited(killedCode, killedReason)); err != nil {
			return stay, err
		}
	}
	return stay, nil
}

// sweepLost removes the members of a pod whose sandbox's record is gone or damaged.
func (e *Engine) sweepLost(ctx context.Context, id string) error {
	members, err := e.others(ctx, id, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range members {
		if m.AutoRemove {
			errs = append(errs, errors.Join(e.destroy(ctx, m), e.Store.Remove(ctx, m.ID)))
			continue
		}
		errs = append(errs, e.destroy(ctx, m))
		_, err := e.Store.Update(ctx, m.ID, exited(killedCode, killedReason))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweepState removes the files of pods and the locks that belong to no record.
func (e *Engine) sweepState(ctx context.Context, known map[string][]bundles.Container) error {
	var errs []error
	entries, err := readDir(filepath.Join(e.StateDir, "pods"))
	errs = append(errs, err)
	for _, entry := range entries {
		if known[entry.Name()] == nil {
			errs = append(errs, e.sweepDir(ctx, entry.Name()))
		}
	}
	entries, err = readDir(filepath.Join(e.StateDir, "locks"))
	errs = append(errs, err)
	for _, entry := range entries {
		// To find out that nobody holds it is to remove it.
		_, err := held(filepath.Join(e.StateDir, "locks", entry.Name()))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweepDir removes the files of a pod that has no record, which is made before them and
// removed after them.
func (e *Engine) sweepDir(ctx context.Context, id string) error {
	l, err := tryLock(e.podLock(id))
	if errors.Is(err, errHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.release()
	if _, err := e.Store.Get(ctx, id); err == nil || !errdefs.Is(err, errdefs.NotFound) || strings.Contains(id, "/") {
		return err // made meanwhile
	}
	dir := e.podDir(id)
	return errors.Join(podnet.RemoveNetns(e.netns(id)), removeTree(dir))
}

func readDir(dir string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}
