package bundles

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// entry is one container that is Husk's, as it was read.
type entry struct {
	id, name string
	stored   stored
	err      error // why it could not be read: ErrDamaged
}

// entries returns the containers that are Husk's, the oldest first. One that is being
// made or removed, or whose maker or remover died, is not there: see [Store.mark].
func (s *Store) entries(ctx context.Context, op string) ([]entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all, err := s.store.Containers()
	if err != nil {
		return nil, mapped(op, err)
	}
	// The marks are read after the containers: a mark is made before its container.
	marks, err := s.marks()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	var list []entry
	pods := map[string]Pod{}
	for i := range all {
		name, ok := huskName(&all[i])
		if !ok || slices.Contains(marks, all[i].ID) {
			continue
		}
		e := entry{id: all[i].ID, name: name}
		e.stored, e.err = decode(&all[i])
		list = append(list, e)
		if c := &e.stored.Container; e.err == nil && c.Sandbox {
			pods[c.ID] = c.Pod
		}
	}
	for i := range list {
		c := &list[i].stored.Container
		// An UpdatePod that was killed has reached the sandbox and not every member.
		if pod, ok := pods[c.Pod.ID]; ok {
			c.Pod = clonePod(pod)
		}
	}
	slices.SortStableFunc(list, func(a, b entry) int {
		return a.stored.Container.Created.Compare(b.stored.Container.Created)
	})
	return list, nil
}

// find returns the container with this whole ID, as containers/storage has it.
func (s *Store) find(op, id string) (*storage.Container, error) {
	if !isID(id) { // containers/storage would take it for a prefix or a name
		return nil, errdefs.Newf(errdefs.InvalidArgument, op, "an ID is 64 lower-case hex digits")
	}
	rec, err := s.store.Container(id)
	if err != nil {
		return nil, mapped(op, err)
	}
	marks, err := s.marks()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	if _, ok := huskName(rec); !ok || rec.ID != id || slices.Contains(marks, id) {
		return nil, errdefs.Newf(errdefs.NotFound, op, "husk has no such container")
	}
	return rec, nil
}

// Get returns a container by its exact name, its ID, or the beginning of its ID if no
// other has the same. Where more have, it is errdefs.InvalidArgument; where none has,
// errdefs.NotFound. A damaged one is an error with [ErrDamaged] that names the ID.
func (s *Store) Get(ctx context.Context, nameOrID string) (Container, error) {
	op := "find container " + nameOrID
	list, err := s.entries(ctx, op)
	if err != nil {
		return Container{}, err
	}
	i, err := choose(op, nameOrID, len(list), func(i int) (string, string) { return list[i].id, list[i].name })
	if err != nil {
		return Container{}, err
	}
	if err := list[i].err; err != nil {
		return Container{}, errdefs.New(errdefs.Internal, op, fmt.Errorf("container %s: %w", list[i].id, err))
	}
	return list[i].stored.Container, nil
}

// choose returns which of n things is meant by a name, an ID or the beginning of one.
func choose(op, nameOrID string, n int, of func(int) (id, name string)) (int, error) {
	found := -1
	for i := range n {
		id, name := of(i)
		switch {
		case name == nameOrID || id == nameOrID: // no name is an ID
			return i, nil
		case nameOrID == "" || !strings.HasPrefix(id, nameOrID):
		case found >= 0:
			found = n
		default:
			found = i
		}
	}
	switch found {
	case -1:
		return 0, errdefs.Newf(errdefs.NotFound, op, "husk has none with this name or ID")
	case n:
		return 0, errdefs.Newf(errdefs.InvalidArgument, op, "more than one ID begins so: give more of it")
	default:
		return found, nil
	}
}

// List returns Husk's containers, the oldest first. Those of CRI-O, podman and others
// are not among them, nor are damaged ones: [Store.Check] reports those.
func (s *Store) List(ctx context.Context) ([]Container, error) {
	list, err := s.entries(ctx, "list containers")
	if err != nil {
		return nil, err
	}
	return readable(list), nil
}

func readable(list []entry) []Container {
	containers := make([]Container, 0, len(list))
	for i := range list {
		if list[i].err == nil {
			containers = append(containers, list[i].stored.Container)
		}
	}
	return containers
}

// Members returns the containers of a pod, the sandbox first, then the oldest first.
// The pod is chosen as [Store.Get] chooses a container. A pod whose sandbox is gone or
// damaged is there as long as it has another member.
func (s *Store) Members(ctx context.Context, podNameOrID string) ([]Container, error) {
	op := "find pod " + podNameOrID
	list, err := s.entries(ctx, op)
	if err != nil {
		return nil, err
	}
	all := readable(list)
	pods := podsOf(all)
	i, err := choose(op, podNameOrID, len(pods), func(i int) (string, string) { return pods[i].ID, pods[i].Name })
	if err != nil {
		return nil, err
	}
	return membersOf(all, pods[i].ID), nil
}

// podsOf returns the pods of all containers. Those that have a sandbox come first: the
// name of one that lost it may have been given to another.
func podsOf(all []Container) []Pod {
	var pods []Pod
	for _, sandbox := range []bool{true, false} {
		for i := range all {
			known := func(p Pod) bool { return p.ID == all[i].Pod.ID }
			if all[i].Sandbox == sandbox && !slices.ContainsFunc(pods, known) {
				pods = append(pods, all[i].Pod)
			}
		}
	}
	return pods
}

// membersOf returns the members of a pod among all containers, the sandbox first.
func membersOf(all []Container, podID string) []Container {
	var members []Container
	for i := range all {
		switch {
		case all[i].Pod.ID != podID:
		case all[i].Sandbox:
			members = slices.Insert(members, 0, all[i])
		default:
			members = append(members, all[i])
		}
	}
	return members
}

func clonePod(p Pod) Pod {
	p.IPs = slices.Clone(p.IPs)
	return p
}
