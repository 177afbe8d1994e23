package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/containers/image/v5/docker"
)

const (
	// maxAttempts bounds how often one step is tried; kubelet tries the whole pull
	// again anyway, with pauses of its own.
	maxAttempts = 4
	// firstPause doubles with each attempt. Half of a pause is random, so that the
	// nodes of a cluster do not come back to a broken registry all at once.
	firstPause = 250 * time.Millisecond
)

// stepper runs the steps of a pull: guarded, and again where that can help. Every
// step only reads.
type stepper struct {
	guard guard
	// pause is the first pause between two attempts; 0 for firstPause.
	pause time.Duration
}

// step runs fn as one step of work on t; doing is what an error says was done.
func (s stepper) step(ctx context.Context, t target, doing string, fn func(context.Context) error) error {
	pause := s.pause
	if pause <= 0 {
		pause = firstPause
	}
	for attempt := 1; ; attempt++ {
		err := s.guard.run(ctx, fn)
		if err == nil {
			return nil
		}
		if attempt == maxAttempts || ctx.Err() != nil || !transient(err) || !sleep(ctx, jitter(pause)) {
			return t.mapped(ctx, doing, err)
		}
		pause *= 2
	}
}

// jitter returns a time between half of d and all of it.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) } //nolint:gosec // spreads load, guards nothing

// sleep waits; it returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// transient reports whether another attempt may well succeed: the server says
// that it has trouble (5xx), a connection broke, or a name server could not
// answer. containers/image itself waits and tries again on 429 (5 times), so that
// is final here; so is all that the registry said or sent on purpose.
func transient(err error) bool {
	var (
		status docker.UnexpectedHTTPStatusError
		lookup *net.DNSError
	)
	switch {
	case errors.As(err, &status):
		return status.StatusCode >= http.StatusInternalServerError
	case errors.As(err, &lookup):
		return lookup.IsTemporary && !lookup.IsNotFound
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
