// Package handover gives the CRI socket from one husk to the next without a client
// noticing: from systemd, from a husk that runs, or, when there is neither, by
// making it.
//
// What is on the file system decides, so that a crash at any line leaves a state
// that the next start understands: a socket somebody answers on is in use, one that
// refuses connections is left over, and a lock file beside it, which is never
// removed and which the kernel unlocks, makes starting husks take turns.
package handover

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// DefaultMode is the mode of CRI-O's socket: whoever can reach it is root on the node.
const DefaultMode fs.FileMode = 0o660

// ErrTaken is the cause of the end of the context from [Listener.Offer] when
// another husk has taken the sockets over and serves already.
var ErrTaken = errors.New("another husk has taken the socket over")

// Options say which socket to listen on.
type Options struct {
	// Path is where to listen, absolute.
	Path string
	// HandoverPath is the socket by which a husk that starts asks the one that runs.
	// Zero: none is asked, and this one is not asked either.
	HandoverPath string
	// Mode of the socket at Path when it has to be made. Zero: [DefaultMode].
	Mode fs.FileMode
}

// Origin is where a listener came from.
type Origin string

// The origins, best first.
const (
	// FromSystemd is a socket that systemd keeps (LISTEN_FDS).
	FromSystemd Origin = "systemd"
	// FromHusk is a socket that the husk before this one gave up.
	FromHusk Origin = "hand-over"
	// FromNowhere is a socket that did not exist, or that nobody served any more.
	FromNowhere Origin = "new"
)

// Listener is a listening unix socket that can be given to another process.
type Listener struct {
	// Origin is where it came from.
	Origin Origin

	bound *bound
	offer *bound // nil: none
	// offerErr is why there is no offer though one is wanted.
	offerErr error

	mu     sync.Mutex
	given  bool
	closed bool
}

var _ net.Listener = (*Listener)(nil)

// Listen returns the listening socket at o.Path. In this order it takes the one
// that systemd passed, asks the husk that serves there for its own, or makes one in
// the place of nothing or of a socket that nobody serves.
//
// Once it returns, connections wait for this process, and the husk before it
// accepts no more: the caller must have done everything else that can fail.
//
// Errors: InUse when another process answers there and does not hand over,
// InvalidArgument when the file is no socket or systemd passed only others,
// Unavailable when another husk has been starting for too long.
func Listen(ctx context.Context, o Options) (l *Listener, err error) {
	if o.Mode == 0 {
		o.Mode = DefaultMode
	}
	inherited, err := activated(o.Path)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, o.Path)
	if err != nil {
		return nil, err
	}
	// Until the offer stands too: the next husk finds both or none.
	defer func() {
		if unlockErr := unlock(); err == nil && unlockErr != nil {
			err = errors.Join(unlockErr, l.Close())
		}
	}()
	if inherited != nil {
		l = inherited
		err = l.relieve(ctx, o)
	} else {
		l, err = acquire(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	if o.HandoverPath != "" && l.offer == nil {
		l.offer, l.offerErr = listenLocked(ctx, "unixpacket", o.HandoverPath, offerMode)
	}
	return l, nil
}

// acquire finds or makes the socket. The caller has the lock.
func acquire(ctx context.Context, o Options) (*Listener, error) {
	busy, err := answers(ctx, "unix", o.Path)
	if err != nil {
		return nil, err
	}
	if busy {
		l, refusal := take(ctx, o)
		if refusal == nil {
			return l, nil
		}
		// It may have ended in the middle.
		if busy, err = answers(ctx, "unix", o.Path); err != nil {
			return nil, err
		}
		if busy {
			return nil, errdefs.Newf(errdefs.InUse, "listen on "+o.Path,
				"another process answers there and does not hand over: %w", refusal)
		}
	}
	made, err := create(ctx, "unix", o.Path, o.Mode)
	if err != nil {
		return nil, err
	}
	return &Listener{Origin: FromNowhere, bound: made}, nil
}

// relieve ends the husk that serves a socket of systemd's, if there is one: someone
// started it by hand, and systemd knows nothing of it. The caller has the lock.
func (l *Listener) relieve(ctx context.Context, o Options) error {
	if taken, refusal := take(ctx, o); refusal == nil {
		l.offer = taken.offer
		return taken.bound.Close()
	}
	return nil // none, as a rule; whoever else holds the offer is reported with it
}

// listenLocked makes a socket that only one process is to have.
func listenLocked(ctx context.Context, network, path string, mode fs.FileMode) (b *bound, err error) {
	unlock, err := lock(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	busy, err := answers(ctx, network, path)
	if err != nil {
		return nil, err
	}
	if busy {
		return nil, errdefs.Newf(errdefs.InUse, "listen on "+path, "another process answers there")
	}
	return create(ctx, network, path, mode)
}

// Accept waits for the next connection.
func (l *Listener) Accept() (net.Conn, error) { return l.bound.Accept() }

// Addr is the socket's path.
func (l *Listener) Addr() net.Addr { return l.bound.Addr() }

// Close stops listening. The socket file stays if it is systemd's or another husk
// has it by now, and goes otherwise.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.given {
		return l.bound.Close()
	}
	return l.bound.closeAndRemove()
}

// Offer gives the socket to the next husk that asks for it, until ctx is done. The
// context it returns ends with ctx, or with cause [ErrTaken] when another husk has
// it: then the caller stops accepting, lets its calls end, and exits. The function
// it returns withdraws the offer and must be called.
func (l *Listener) Offer(ctx context.Context, log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if l.offerErr != nil {
		log.Warn("a husk that starts later cannot take the socket over from this one", "error", l.offerErr)
	}
	if l.offer == nil {
		return ctx, func() { cancel(nil) }
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if l.serveOffer(ctx, log) {
			cancel(ErrTaken)
		}
	})
	return ctx, func() {
		cancel(nil)
		serving.Wait()
	}
}

// makeDir makes the folder of a socket, as systemd's RuntimeDirectory would.
func makeDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errdefs.New(errdefs.Internal, "listen on "+path, err)
	}
	return nil
}
