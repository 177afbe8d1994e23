package shim

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/events"
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	"github.com/containerd/log"

	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// oomFile in a bundle tells CRI-O that the container was killed for want of memory.
const oomFile = "oom"

// eventSink takes the events of the task service. There is no containerd to send
// them to: an OOM and an exit become what CRI-O looks for instead.
type eventSink struct {
	pod       pod.Pod
	framework containerdshim.Publisher
	waits     *waits
}

var _ containerdshim.Publisher = (*eventSink)(nil)

// Publish never fails: there is nobody who would try again.
func (s *eventSink) Publish(ctx context.Context, _ string, event events.Event) error {
	var err error
	switch e := event.(type) {
	case *eventsapi.TaskOOM:
		err = s.oom(e.ContainerID)
	case *eventsapi.TaskExit:
		if e.ID == e.ContainerID {
			err = s.exit(e)
		}
	}
	if err != nil && !errdefs.Is(err, errdefs.NotFound) { // a container may be deleted by now
		log.G(ctx).WithError(err).Warn("an event was lost")
	}
	return nil
}

func (s *eventSink) oom(id string) error {
	r, err := s.pod.Get(id)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.Bundle, oomFile), nil, 0o644)
}

func (s *eventSink) exit(e *eventsapi.TaskExit) error {
	r, err := s.pod.Update(e.ContainerID, func(r pod.Record) pod.Record {
		return r.Exited(e.ExitedAt.AsTime(), e.ExitStatus)
	})
	if err != nil {
		return err
	}
	if s.waits.has(r.ID) {
		return nil // the answer tells CRI-O
	}
	return r.AnnounceExit()
}

// Close closes the framework's publisher, which it waits for at its end.
func (s *eventSink) Close() error { return s.framework.Close() }

// waits knows which exits CRI-O hears of because it waits, or has waited, for them.
type waits struct {
	mu    sync.Mutex
	count map[string]int
}

func newWaits() *waits { return &waits{count: map[string]int{}} }

func (w *waits) has(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count[id] > 0
}

// begin counts a caller, for as long as its connection lives. answered keeps it
// counted for good: the exit is known.
func (w *waits) begin(ctx context.Context, id string) (answered func()) {
	w.mu.Lock()
	w.count[id]++
	w.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.count[id] > 0 { // else the container is deleted
			w.count[id]--
		}
	})
	return func() { stop() }
}

// forget drops a deleted container.
func (w *waits) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.count, id)
}
