package bundles

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/mount"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Remove removes a container, by its exact name or its whole ID: the record, both
// directories and the layer. One that is not there is no error; one that is not Husk's
// is errdefs.InvalidArgument and stays. A damaged one can be removed. It does not look
// whether the container runs.
//
// errdefs.InUse: it is the sandbox of a pod that has other members, or something is
// mounted below its directories, the contents of which would be removed too.
func (s *Store) Remove(ctx context.Context, nameOrID string) error {
	op := "remove container " + nameOrID
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	// A member whose own removal was killed holds its sandbox no longer.
	_, _ = s.settleAll(ctx)
	all, err := s.store.Containers()
	if err != nil {
		return mapped(op, err)
	}
	i := slices.IndexFunc(all, func(rec storage.Container) bool {
		return rec.ID == nameOrID || slices.Contains(rec.Names, namePrefix+nameOrID)
	})
	if i < 0 {
		return nil
	}
	rec := &all[i]
	if _, ok := huskName(rec); !ok {
		return errdefs.Newf(errdefs.InvalidArgument, op, "it is not a container of husk's")
	}
	if err := alone(op, rec, all); err != nil {
		return err
	}
	if err := s.unmounted(rec.ID); err != nil {
		return errdefs.New(errdefs.InUse, op, err)
	}
	if err := s.mark(rec.ID); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	if err := s.settle(rec.ID); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

// alone fails if rec is the sandbox of a pod that has another member among all.
func alone(op string, rec *storage.Container, all []storage.Container) error {
	if !slices.ContainsFunc(rec.Names, func(n string) bool { return strings.HasPrefix(n, podPrefix) }) {
		return nil
	}
	for i := range all {
		st, err := decode(&all[i])
		if err == nil && !st.Container.Sandbox && st.Container.Pod.ID == rec.ID {
			return errdefs.Newf(errdefs.InUse, op, "container %s is in its pod", st.Container.Name)
		}
	}
	return nil
}

// Sweep removes what Creates and Removes that were killed have left, and returns the
// IDs. What cannot be removed is an error, and stays for the next Sweep.
func (s *Store) Sweep(ctx context.Context) ([]string, error) {
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return s.settleAll(ctx)
}

// settleAll settles every mark. The caller holds the lock, so nobody is at work on any.
func (s *Store) settleAll(ctx context.Context) ([]string, error) {
	marks, err := s.marks()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "remove unfinished containers", err)
	}
	var gone []string
	var failed []error
	for _, id := range marks {
		if err := ctx.Err(); err != nil {
			return gone, err
		}
		if err := s.settle(id); err != nil {
			failed = append(failed, errdefs.New(errdefs.Internal, "remove unfinished container "+id, err))
			continue
		}
		gone = append(gone, id)
	}
	return gone, errors.Join(failed...)
}

// settle removes all there is of a marked container, however far its Create or Remove
// came, and then the mark. The caller holds the lock.
func (s *Store) settle(id string) error {
	rec, err := s.store.Container(id)
	if err == nil && rec.ID == id {
		if _, ok := huskName(rec); ok {
			err = s.delete(id)
		} // else somebody else's container has got this ID
	}
	if err != nil && !errors.Is(err, storage.ErrContainerUnknown) {
		return fmt.Errorf("containers/storage: %w", err)
	}
	// A Create that was killed before it had a record may have a layer.
	err = s.store.DeleteLayer(layerID(id))
	if err != nil && !errors.Is(err, storage.ErrNotALayer) && !errors.Is(err, storage.ErrLayerUnknown) {
		return fmt.Errorf("containers/storage: %w", err)
	}
	return s.unmark(id)
}

func (s *Store) delete(id string) error {
	if err := s.unmounted(id); err != nil {
		return err
	}
	err := s.store.DeleteContainer(id)
	if errors.Is(err, storage.ErrNotAContainer) { // another tool was quicker
		return nil
	}
	return err
}

// unmounted fails if something is mounted below a directory of the container: with the
// directory containers/storage would remove what is in the mount, which may be a volume
// of the user's.
func (s *Store) unmounted(id string) error {
	mounts, err := mount.GetMounts()
	if err != nil {
		return err
	}
	for _, root := range []string{s.store.GraphRoot(), s.store.RunRoot()} {
		dir := filepath.Join(root, s.store.GraphDriverName()+"-containers", id)
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		for _, m := range mounts {
			if m.Mountpoint == dir || strings.HasPrefix(m.Mountpoint, dir+"/") {
				return fmt.Errorf("something is mounted on %s", m.Mountpoint)
			}
		}
	}
	return nil
}

// mark notes that a container is being made or removed. While its mark is there a
// container is not seen; if the lock is free then, its maker or remover has died, and
// the rest of it is to be removed. The caller holds the lock.
func (s *Store) mark(id string) error {
	if err := os.MkdirAll(s.pending, 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(s.pending, id), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

func (s *Store) unmark(id string) error {
	if err := os.Remove(filepath.Join(s.pending, id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// marks returns the IDs of the containers that have a mark.
func (s *Store) marks() ([]string, error) {
	entries, err := os.ReadDir(s.pending)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if isID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
