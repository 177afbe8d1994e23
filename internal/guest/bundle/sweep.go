package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Sweep takes back unfinished bundles and removes the state of those that are mounted
// nowhere any more. Bundles in use stay as they are.
func (k *Keeper) Sweep(ctx context.Context) error {
	unlock, err := k.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return k.sweep()
}

// Release takes back every bundle that is mounted here alone: nothing of it is in use by
// a container. It goes on after an error.
func (k *Keeper) Release(ctx context.Context) error {
	unlock, err := k.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return k.each("release bundles", func(s state, here, there bool) error {
		if there {
			return nil
		}
		if !here {
			return s.remove()
		}
		return k.takeBack(s)
	})
}

// Remove takes a bundle back that Make has made. One that it has not made is no error.
func (k *Keeper) Remove(ctx context.Context, path string) error {
	unlock, err := k.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	s := k.state(path)
	if _, err := os.Lstat(s.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := k.takeBack(s); err != nil {
		return errdefs.New(errdefs.Internal, "remove bundle", err)
	}
	return nil
}

func (k *Keeper) sweep() error {
	return k.each("sweep bundles", func(s state, here, there bool) error {
		switch {
		case there:
			return nil
		case !s.complete():
			return k.takeBack(s)
		case !here:
			return s.remove()
		}
		return nil
	})
}

// each calls do for every state directory; here and there say whether its overlay is
// mounted in this mount namespace and in others. The lock is held.
func (k *Keeper) each(op string, do func(s state, here, there bool) error) error {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	here, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	there, err := elsewhere()
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue // the lock
		}
		s := state{filepath.Join(k.dir, e.Name())}
		upper := s.path("upper")
		if err := do(s, len(here[upper]) > 0, there[upper]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.Name(), err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

// takeBack removes a bundle and its state. What the bundle's directory had before stays.
func (k *Keeper) takeBack(s state) error {
	if err := s.unmount(); err != nil {
		return err
	}
	r, err := s.read()
	if err != nil { // it died before there was more than the record
		return s.remove()
	}
	d, err := k.openDir(r.Bundle, false)
	if err != nil { // gone, or replaced by something that is not ours to change
		return s.remove()
	}
	defer d.close()
	errs := []error{d.unlink(d.fd, tempConfig, 0), d.removeConfig()}
	if r.MadeRootfs {
		errs = append(errs, d.removeRootfs())
	}
	if r.MadeBundle {
		errs = append(errs, d.removeDir())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.remove()
}
