package keeper

import (
	"bufio"
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// successorWait is how long a client's connection waits for a successor when its
// connection to the task service broke, or none could be made because nobody listens
// any more. It covers killing every container of a pod; a service that broke one
// connection but lives has no successor, and the client must learn that at last.
const successorWait = 2 * time.Minute

// Relay passes ttrpc connections on to a task service, message by message. When
// the service dies, the connections live on: requests without an answer are put
// again, in order, to the service's successor. Who connects after the death waits as
// they do.
//
// That is what makes a pod removable whose shim was killed: stock CRI-O treats a
// closed connection as a failure to stop the container, each time, until CRI-O is
// restarted (internal/oci/runtime_vm.go, StopContainer).
type Relay struct {
	// Dial connects to the service or, once Dead is closed, to its successor.
	Dial func(ctx context.Context) (net.Conn, error)
	// Dead is closed when the successor is ready. A nil channel means never.
	Dead <-chan struct{}
}

// Serve accepts connections until the listener fails or is closed, and returns why.
func (r Relay) Serve(ctx context.Context, l net.Listener) error {
	peer := ttrpc.UnixSocketRequireSameUser()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if _, _, err := peer.Handshake(ctx, conn); err != nil {
			log.G(ctx).WithError(err).Warn("refused a connection")
			_ = conn.Close()
			continue
		}
		go func() {
			if err := r.relay(ctx, conn); err != nil {
				log.G(ctx).WithError(err).Warn("connection ended")
			}
		}()
	}
}

// link is one client's connection and the one it is passed on to.
type link struct {
	client net.Conn

	mu sync.Mutex
	// service is nil while the client waits for a successor that it connected too late
	// to see the predecessor of.
	service net.Conn
	// open holds the requests that have no answer yet. ttrpc gives each stream a
	// higher number than the last, so sorting by stream restores their order.
	open map[uint32]frame
	// left is set once the client has.
	left bool
}

var errLeft = errors.New("the client left")

func (r Relay) relay(ctx context.Context, client net.Conn) error {
	defer func() { _ = client.Close() }() // the reason to end is the one reported
	service, broken := r.Dial(ctx)
	if broken != nil && !r.awaits(broken) {
		return broken
	}
	l := &link{client: client, service: service, open: map[uint32]frame{}}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		l.forward()
		l.close()
	}()
	for {
		if service != nil {
			broken = l.backward()
		}
		select {
		case <-gone: // the client left, or cannot be written to
			return nil
		case <-r.Dead:
		case <-time.After(successorWait):
			return broken
		}
		var err error
		if service, err = r.Dial(ctx); err != nil {
			return errors.Join(broken, err)
		}
		if err := l.succeed(service); err != nil {
			return errors.Join(broken, err)
		}
	}
}

// awaits says whether a successor may come for a service that could not be dialled:
// its socket is gone, or nobody listens on it. A service that lives and is too busy has
// none.
func (r Relay) awaits(err error) bool {
	return r.Dead != nil && (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT))
}

// forward passes requests of the client on until it leaves, or sends something else.
func (l *link) forward() {
	in := bufio.NewReader(l.client)
	for {
		f, err := readFrame(in)
		if err != nil {
			return
		}
		if !f.opens() {
			// No service takes a stream from its client, and a message to a stream that is
			// not open makes ttrpc's server panic.
			return
		}
		l.mu.Lock()
		l.open[f.stream()] = f
		if l.service != nil { // else its successor gets it
			// A write that fails is not the end: backward sees the broken connection too,
			// and a request is put again.
			_, _ = l.service.Write(f)
		}
		l.mu.Unlock()
	}
}

// backward passes messages of the service on until its connection breaks. A
// message that was cut short is dropped: the client never sees a half.
func (l *link) backward() error {
	l.mu.Lock()
	in := bufio.NewReader(l.service)
	l.mu.Unlock()
	for {
		f, err := readFrame(in)
		if err != nil {
			return err
		}
		if f.ends() {
			l.mu.Lock()
			delete(l.open, f.stream())
			l.mu.Unlock()
		}
		if _, err := l.client.Write(f); err != nil {
			_ = l.client.Close() // ends forward, and with it the link
			return err
		}
	}
}

// succeed makes service the one that is passed on to and puts the open requests to it.
func (l *link) succeed(service net.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left { // and nobody would ever close it
		return errors.Join(errLeft, service.Close())
	}
	if l.service != nil {
		_ = l.service.Close() // broken already
	}
	l.service = service
	for _, stream := range slices.Sorted(maps.Keys(l.open)) {
		if _, err := service.Write(l.open[stream]); err != nil {
			return err
		}
	}
	return nil
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = true
	if l.service != nil {
		_ = l.service.Close() // the client is gone: nobody is left to tell
	}
}
