package layerpull

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The first bytes of the compressed forms (RFC 1952, RFC 8878). A zstd:chunked
// layer begins with an ordinary frame, and what it adds are skippable frames.
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress returns the tar stream in r, whichever way it is compressed.
func decompress(ctx context.Context, r io.Reader, pool *decoders) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, peekBytes)
	magic, err := buffered.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		return gzip.NewReader(buffered)
	case bytes.Equal(magic, zstdMagic):
		return pool.open(ctx, buffered)
	}
	return io.NopCloser(buffered), nil
}

// decoders are the zstd decoders of one pull. What they may use together is
// bounded, and they are used again: each allocates its window.
type decoders struct {
	budget *semaphore.Weighted
	mu     sync.Mutex
	idle   []*zstd.Decoder // with windows of minZstdWindow
}

func newDecoders() *decoders { return &decoders{budget: semaphore.NewWeighted(zstdBudget)} }

// open begins to decode r.
func (d *decoders) open(ctx context.Context, r *bufio.Reader) (io.ReadCloser, error) {
	// Every decoder must manage 8 MiB (RFC 8878, 3.1.1.1.2). Frames after the first
	// may need more than it does, but not more than that.
	window, weight := uint64(minZstdWindow), int64(minZstdWindow)
	var first zstd.Header
	if start, err := r.Peek(zstd.HeaderMaxSize); err == nil || errors.Is(err, io.EOF) {
		if first.Decode(start) == nil && first.WindowSize > minZstdWindow {
			window, weight = maxZstdWindow, zstdBudget // it has the pull to itself
		}
	}
	if err := d.budget.Acquire(ctx, weight); err != nil {
		return nil, err
	}
	z, err := d.take(window)
	if err == nil {
		err = z.Reset(r)
	}
	if err != nil {
		d.budget.Release(weight)
		return nil, err
	}
	return &zstdReader{z: z, close: func() {
		d.put(z, window)
		d.budget.Release(weight)
	}}, nil
}

func (d *decoders) take(window uint64) (*zstd.Decoder, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := len(d.idle) - 1; window == minZstdWindow && last >= 0 {
		z := d.idle[last]
		d.idle = d.idle[:last]
		return z, nil
	}
	for _, z := range d.idle {
		z.Close() // the large one needs the room
	}
	d.idle = nil
	// One goroutine: layers run side by side, and its memory is bounded.
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
}

func (d *decoders) put(z *zstd.Decoder, window uint64) {
	if window != minZstdWindow || z.Reset(nil) != nil {
		z.Close()
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle = append(d.idle, z)
}

// close frees the decoders; none is in use any more.
func (d *decoders) close() {
	for _, z := range d.idle {
		z.Close()
	}
}

// zstdReader makes a decoder a ReadCloser and tells a window that is too large
// from a broken stream.
type zstdReader struct {
	z     *zstd.Decoder
	close func()
}

// Read implements [io.Reader].
func (z *zstdReader) Read(p []byte) (int, error) {
	n, err := z.z.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		err = errdefs.New(errdefs.TooLarge, "decompress", fmt.Errorf("%w: the limit is %d bytes", err, maxZstdWindow))
	}
	return n, err
}

// Close implements [io.Closer].
func (z *zstdReader) Close() error {
	z.close()
	return nil
}
