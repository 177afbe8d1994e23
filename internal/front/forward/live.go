package forward

import (
	"context"
	"errors"
	"sync"
)

// errCut is why a stream that would never have ended has ended. Clients of event
// streams open a new one after Unavailable.
var errCut = errors.New("husk is restarting: the stream has been cut, open it again")

// liveStreams are the streams that may never end by themselves. The zero value is
// ready for use.
type liveStreams struct {
	mu      sync.Mutex
	ended   bool
	cancels map[*context.CancelCauseFunc]struct{}
}

// track returns ctx, ended with cause errCut by cut. The function that is returned
// ends it too, and must be called.
func (l *liveStreams) track(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		cancel(errCut)
	} else {
		if l.cancels == nil {
			l.cancels = map[*context.CancelCauseFunc]struct{}{}
		}
		l.cancels[&cancel] = struct{}{}
	}
	return ctx, func() {
		cancel(nil)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.cancels, &cancel)
	}
}

// cut ends all streams, and at once all that begin later.
func (l *liveStreams) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	for cancel := range l.cancels {
		(*cancel)(errCut)
	}
}
