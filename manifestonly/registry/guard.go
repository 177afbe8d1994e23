package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http/httptrace"
	"runtime/metrics"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// defaultProgressTimeout is Config.ProgressTimeout where that is zero.
	defaultProgressTimeout = 30 * time.Second
	// minProgress is how many bytes must come in a progress timeout. A registry
	// that sends one byte now and then is not slow, it holds the pull hostage.
	minProgress = 1 << 10
	// maxStepTime bounds one step (opening a manifest, a config, the signatures)
	// with everything that belongs to it: mirrors, tokens, the waits that a registry
	// asks for by 429. A registry that answers each of them just in time would
	// otherwise hold a pull for ever, when the caller has no deadline.
	maxStepTime = 5 * time.Minute
	// maxStepBytes bounds what registries send in one step. containers/image reads
	// the body of an error without a limit; the largest honest step is a few
	// signatures of 4 MiB.
	maxStepBytes = 64 << 20
	// maxHeapGrowth bounds what a step adds to the heap, in bytes. net/http unpacks gzip
	// unasked, also for the error bodies above: 1 MiB from a registry can become 1 GiB
	// here. No honest step takes a tenth of it.
	maxHeapGrowth = 256 << 20
	// maxInnocent is how many bytes a step may receive and not be blamed for the heap,
	// which is the whole process's: one tenant's bomb must not end the pulls of the
	// others. Hardly any honest step needs more; deflate makes 64 MiB of it at most.
	maxInnocent = 64 << 10
	// maxPoll is the time between two looks at a step: what comes in between two
	// looks is over the limits unseen.
	maxPoll = 20 * time.Millisecond
)

// guard cuts off a step that makes no progress or takes too much. The HTTP client
// of containers/image takes no transport from outside, so the guard watches from
// the side: by the events of httptrace, and by the byte counters that the kernel
// keeps of the connections.
type guard struct {
	// progress is the time without progress after which a step is cut off.
	progress time.Duration
}

func (g guard) limit() time.Duration {
	if g.progress <= 0 {
		return defaultProgressTimeout
	}
	return g.progress
}

// cut is why a guard ended a step.
type cut struct {
	kind errdefs.Kind
	text string
}

func (c *cut) Error() string { return c.text }

// run calls fn, with a context that ends when the step is cut off; the error is
// then a *cut. No goroutine of the guard is left when it returns.
func (g guard) run(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	now := time.Now()
	w := &watch{limit: g.limit(), start: now, mark: now, heap: heapBytes()}
	finished, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		w.loop(finished, cancel)
	}()
	err := fn(httptrace.WithClientTrace(ctx, w.trace()))
	close(finished)
	<-stopped
	var why *cut
	if err != nil && errors.As(context.Cause(ctx), &why) {
		return why
	}
	return err
}

// watch is the state of one step.
type watch struct {
	limit time.Duration
	start time.Time
	heap  uint64 // at the start

	mu        sync.Mutex
	active    bool            // a request is under way
	conn      syscall.RawConn // its connection; nil while there is none that can be asked
	opaque    bool            // it has a connection, which cannot be asked
	seen      uint64          // bytes received on conn so far
	total     uint64          // bytes received in this step
	mark      time.Time       // last progress
	markTotal uint64          // total at mark
}

// trace returns the hooks that say when a request is under way and gets on.
func (w *watch) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn:              func(string) { w.event(func() { w.active, w.conn, w.opaque = true, nil, false }) },
		GotConn:              func(info httptrace.GotConnInfo) { w.event(func() { w.use(info.Conn) }) },
		PutIdleConn:          func(error) { w.event(func() { w.active = false }) },
		DNSStart:             func(httptrace.DNSStartInfo) { w.event(nil) },
		DNSDone:              func(httptrace.DNSDoneInfo) { w.event(nil) },
		ConnectStart:         func(_, _ string) { w.event(nil) },
		ConnectDone:          func(_, _ string, _ error) { w.event(nil) },
		TLSHandshakeStart:    func() { w.event(nil) },
		TLSHandshakeDone:     func(tls.ConnectionState, error) { w.event(nil) },
		WroteRequest:         func(httptrace.WroteRequestInfo) { w.event(nil) },
		GotFirstResponseByte: func() { w.event(nil) },
	}
}

// event notes progress.
func (w *watch) event(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count()
	w.mark, w.markTotal = time.Now(), w.total
	if change != nil {
		change()
	}
}

// use makes conn the connection of the request under way, which is yet to be sent.
func (w *watch) use(conn net.Conn) {
	for {
		wrapped, ok := conn.(interface{ NetConn() net.Conn }) // TLS
		if !ok {
			break
		}
		conn = wrapped.NetConn()
	}
	w.conn, w.opaque = nil, true
	if sys, ok := conn.(syscall.Conn); ok {
		if raw, err := sys.SyscallConn(); err == nil {
			w.conn = raw
			w.seen, w.opaque = received(raw)
		}
	}
}

// received returns how many bytes came in on a TCP connection; true when it
// cannot say.
func received(raw syscall.RawConn) (n uint64, opaque bool) {
	var info *unix.TCPInfo
	var failed error
	err := raw.Control(func(fd uintptr) {
		info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) //nolint:gosec // a descriptor is an int
	})
	if err != nil || failed != nil {
		return 0, true
	}
	return info.Bytes_received, false
}

// count adds what came in since the last look. A connection that is closed, or of
// a kind that cannot be asked, counts no more.
func (w *watch) count() {
	if w.conn == nil {
		return
	}
	n, gone := received(w.conn)
	if gone {
		w.conn, w.opaque = nil, true
		return
	}
	w.total, w.seen = w.total+n-w.seen, n
}

// loop looks at the step until it is finished, or cuts it off.
func (w *watch) loop(finished <-chan struct{}, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(min(maxPoll, max(w.limit/8, time.Millisecond)))
	defer ticker.Stop()
	for {
		select {
		case <-finished:
			return
		case now := <-ticker.C:
			if why := w.look(now, heapBytes()); why != nil {
				cancel(why)
				return
			}
		}
	}
}

// look returns why the step must end, or nil; heap is what [heapBytes] returns now.
func (w *watch) look(now time.Time, heap uint64) *cut {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count()
	switch {
	case w.total > maxStepBytes:
		return &cut{errdefs.TooLarge, fmt.Sprintf("the registry sent more than %d bytes", maxStepBytes)}
	case w.total > maxInnocent && heap > w.heap+maxHeapGrowth:
		return &cut{errdefs.TooLarge, fmt.Sprintf("its answers took more than %d bytes of memory", maxHeapGrowth)}
	case now.Sub(w.start) > maxStepTime:
		return &cut{errdefs.RegistryUnavailable, fmt.Sprintf("it took longer than %s", maxStepTime)}
	}
	// Between two requests the library waits because it was told to (429), and a
	// connection that cannot be asked is taken for a good one.
	if !w.active || w.opaque || w.total-w.markTotal >= minProgress {
		w.mark, w.markTotal = now, w.total
	}
	if now.Sub(w.mark) > w.limit {
		return &cut{errdefs.RegistryUnavailable, fmt.Sprintf("no progress for %s", w.limit)}
	}
	return nil
}

// heapBytes returns how much of the heap is taken, dead objects included.
func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
