package bundles

import (
	"context"
	"fmt"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Update changes what is kept of the container with this whole ID and returns it as it
// is stored then. No other Update comes in between. The ID, names, Sandbox, Pod, Image
// and Created stay: a change of them is errdefs.InvalidArgument, as is one that cannot
// be stored. change must not call the store.
func (s *Store) Update(ctx context.Context, id string, change func(*Container)) (Container, error) {
	op := "update container " + id
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return Container{}, err
	}
	defer release()
	rec, err := s.find(op, id)
	if err != nil {
		return Container{}, err
	}
	st, err := decode(rec)
	if err != nil {
		return Container{}, errdefs.New(errdefs.Internal, op, err)
	}
	before := st.Container
	before.Pod = clonePod(before.Pod)
	change(&st.Container)
	complete(&st.Container, before.Created)
	if !sameIdentity(&before, &st.Container) {
		return Container{}, errdefs.Newf(errdefs.InvalidArgument, op, "what says which container it is cannot be changed")
	}
	if err := s.write(op, rec, st); err != nil {
		return Container{}, err
	}
	return st.Container, nil
}

// write stores changed metadata. The caller holds the lock.
func (s *Store) write(op string, rec *storage.Container, st stored) error {
	if err := st.matches(rec); err != nil {
		return errdefs.New(errdefs.InvalidArgument, op, err)
	}
	text, err := st.encode()
	if err != nil {
		return errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if err := s.store.SetMetadata(rec.ID, text); err != nil {
		return mapped(op, err)
	}
	return nil
}

// UpdatePod changes a pod, by its whole ID, in every member. The sandbox comes first
// and is what counts for readers, so a kill in between is never seen. The ID, the name
// and Created stay, as with [Store.Update]. change must not call the store.
func (s *Store) UpdatePod(ctx context.Context, podID string, change func(*Pod)) error {
	op := "update pod " + podID
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	list, err := s.entries(ctx, op)
	if err != nil {
		return err
	}
	members := membersOf(readable(list), podID)
	if len(members) == 0 {
		return errdefs.Newf(errdefs.NotFound, op, "husk has no such pod")
	}
	pod := clonePod(members[0].Pod)
	change(&pod)
	was := members[0].Pod
	if pod.ID != was.ID || pod.Name != was.Name || !pod.Created.Equal(was.Created) {
		return errdefs.Newf(errdefs.InvalidArgument, op, "what says which pod it is cannot be changed")
	}
	pod.Created = was.Created // the same time may be told in another zone
	for i := range members {
		if err := s.setPod(op, members[i].ID, pod); err != nil {
			return err
		}
	}
	return nil
}

// setPod changes the pod of one member. The caller holds the lock.
func (s *Store) setPod(op, id string, pod Pod) error {
	rec, err := s.find(op, id)
	if errdefs.Is(err, errdefs.NotFound) { // another tool removed it
		return nil
	} else if err != nil {
		return err
	}
	st, err := decode(rec)
	if err != nil {
		return errdefs.New(errdefs.Internal, op, fmt.Errorf("container %s: %w", id, err))
	}
	st.Container.Pod = clonePod(pod)
	return s.write(op, rec, st)
}
