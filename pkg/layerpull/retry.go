package layerpull

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// resumed is the body of a blob that outlives its connections.
//
// containers/image's own reader resumes by a range request when a connection
// breaks, after a second, as long as a megabyte came through or a minute has
// passed since the last time. What it gives up on (a registry that takes no
// ranges, a request that fails, a connection that says nothing) is asked for
// again here, from the start, and what was already read is passed over: the
// digest is of the bytes that were read, whichever request brought them.
type resumed struct {
	// open makes a request for the whole blob.
	open func() (io.ReadCloser, error)
	// again reports whether another request may help, after waiting for the time
	// to make it.
	again func(attempt int, err error) bool

	body     io.ReadCloser
	offset   int64
	attempts int
	broken   error // what ended the body, to be met by the next Read
}

// Read implements [io.Reader].
func (r *resumed) Read(p []byte) (int, error) {
	for {
		if r.broken != nil {
			if err := r.reopen(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p)
		r.offset += int64(n)
		if err == nil || errors.Is(err, io.EOF) {
			return n, err
		}
		r.broken = err
		if n > 0 {
			return n, nil
		}
	}
}

// reopen gets a body that stands at offset.
func (r *resumed) reopen() error {
	for {
		if r.attempts++; r.attempts > maxRetries || !r.again(r.attempts, r.broken) {
			return r.broken
		}
		_ = r.Close()
		body, err := r.open()
		if err == nil {
			r.body = body
			_, err = io.CopyN(io.Discard, body, r.offset)
		}
		if err == nil {
			r.broken = nil
			return nil
		}
		r.broken = err
	}
}

// Close implements [io.Closer].
func (r *resumed) Close() error {
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.body = nil
	return err
}

// watched is the body of one connection. It is given up when it says nothing for
// the time of a stall.
type watched struct {
	io.ReadCloser
	timer *time.Timer
	stall time.Duration
	end   context.CancelFunc
	why   func() error
}

// Read implements [io.Reader].
func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.stall)
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if why := w.why(); why != nil {
			err = why
		}
	}
	return n, err
}

// Close implements [io.Closer].
func (w *watched) Close() error {
	w.timer.Stop()
	w.end()
	return w.ReadCloser.Close()
}

// request asks the registry for a blob once.
func (s *source) request(ctx context.Context, d digest.Digest, size int64) (io.ReadCloser, error) {
	connection, end := context.WithCancelCause(ctx)
	timer := time.AfterFunc(s.stall, func() {
		end(errdefs.Newf(errdefs.RegistryUnavailable, "fetch blob", "nothing came for %s", s.stall))
	})
	why := func() error {
		if connection.Err() == nil {
			return nil
		}
		return context.Cause(connection)
	}
	body, length, err := s.src.GetBlob(connection, types.BlobInfo{Digest: d, Size: size}, none.NoCache)
	timer.Stop()
	if err != nil {
		if cause := why(); cause != nil {
			err = cause
		}
		end(nil)
		return nil, registryError("fetch blob", err)
	}
	w := &watched{ReadCloser: body, timer: timer, stall: s.stall, end: func() { end(nil) }, why: why}
	if length >= 0 && length != size {
		_ = w.Close()
		return nil, errdefs.Newf(errdefs.DigestMismatch, "fetch blob", "there are %d bytes, the manifest says %d", length, size)
	}
	return w, nil
}

// blob opens a blob; what is read from it is checked against digest and size.
func (s *source) blob(ctx context.Context, d digest.Digest, size int64) (*verifier, error) {
	r := &resumed{open: func() (io.ReadCloser, error) { return s.request(ctx, d, size) }}
	r.again = func(attempt int, err error) bool {
		if ctx.Err() != nil || registryKind(err) != errdefs.RegistryUnavailable {
			return false
		}
		backoff := firstBackoff << (attempt - 1)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(backoff + rand.N(backoff/4)): // registries are asked by many at once
			return true
		}
	}
	body, err := r.open()
	if err == nil {
		r.body = body
		return newVerifier(r, d, size), nil
	}
	r.broken = err
	if err := r.reopen(); err != nil {
		return nil, err
	}
	return newVerifier(r, d, size), nil
}
