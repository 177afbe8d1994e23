package bundles

import (
	"context"
	"errors"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Kind says what is wrong with a container's record.
type Kind string

// The kinds of findings.
const (
	// DamagedRecord is a container whose metadata cannot be read, is too long, or says
	// something else than its record.
	DamagedRecord Kind = "damaged-record"
	// UnknownVersion is a container that another version of Husk wrote.
	UnknownVersion Kind = "unknown-version"
	// DamagedTemplate is a container whose template is missing or was changed. It can
	// run on, and not be started.
	DamagedTemplate Kind = "damaged-template"
	// LostPod is a container whose pod's sandbox is gone or damaged.
	LostPod Kind = "lost-pod"
	// LostImage is a container whose image was removed by force.
	LostImage Kind = "lost-image"
	// Unfinished is what a killed Create or Remove has left. [Store.Sweep] removes it.
	Unfinished Kind = "unfinished"
)

// Finding is one thing that is wrong. Whatever it is, [Store.Remove] removes the
// container, and for Unfinished [Store.Sweep].
type Finding struct {
	Kind Kind `json:"kind"`
	// ID and Name are the container's; what is unfinished has no name.
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	// Detail says what is wrong.
	Detail string `json:"detail"`
}

// Check looks at every container of Husk's and changes nothing. What it finds wrong with
// one hides nothing about the others. It reads every template.
func (s *Store) Check(ctx context.Context) ([]Finding, error) {
	op := "check containers"
	// Under the lock nothing is half made that has a living maker.
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	list, err := s.entries(ctx, op)
	if err != nil {
		return nil, err
	}
	marks, err := s.marks()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	found := []Finding{}
	for _, id := range marks {
		found = append(found, Finding{Kind: Unfinished, ID: id, Detail: "a killed process has left it"})
	}
	pods := map[string]bool{}
	for i := range list {
		if list[i].err == nil && list[i].stored.Container.Sandbox {
			pods[list[i].id] = true
		}
	}
	for i := range list {
		if err := ctx.Err(); err != nil {
			return found, err
		}
		if f, ok := s.checkOne(&list[i], pods); ok {
			found = append(found, f)
		}
	}
	return found, nil
}

// checkOne returns the worst that is wrong with one container.
func (s *Store) checkOne(e *entry, pods map[string]bool) (Finding, bool) {
	f := Finding{ID: e.id, Name: e.name}
	c := &e.stored.Container
	if e.err != nil {
		f.Kind, f.Detail = DamagedRecord, e.err.Error()
		if errors.Is(e.err, errVersion) {
			f.Kind = UnknownVersion
		}
		return f, true
	}
	if !pods[c.Pod.ID] {
		f.Kind, f.Detail = LostPod, "the sandbox "+c.Pod.ID+" is gone or damaged"
		return f, true
	}
	if id := c.Image.RecordID.String(); id != "" && !s.store.Exists(id) {
		f.Kind, f.Detail = LostImage, "the image record "+id+" is gone"
		return f, true
	}
	rec, err := s.store.Container(e.id)
	if err == nil {
		_, err = s.readTemplate(rec)
	}
	if err != nil {
		f.Kind, f.Detail = DamagedTemplate, err.Error()
		return f, true
	}
	return f, false
}
