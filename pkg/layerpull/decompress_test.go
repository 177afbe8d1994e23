package layerpull

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// zstdFrame compresses data with a window of the given size.
func zstdFrame(t testing.TB, data []byte, window int) []byte {
	t.Helper()
	g := NewWithT(t)
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	g.Expect(err).NotTo(HaveOccurred())
	// In two writes: a frame that is written at once has no window of its own.
	for _, half := range [][]byte{data[:len(data)/2], data[len(data)/2:]} {
		_, err := w.Write(half)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(w.Flush()).To(Succeed())
	}
	g.Expect(w.Close()).To(Succeed())
	return buf.Bytes()
}

// skippable is a frame that decoders pass over, as zstd:chunked puts its table of
// contents into.
func skippable(data []byte) []byte {
	frame := binary.LittleEndian.AppendUint32(nil, 0x184D2A50)
	frame = binary.LittleEndian.AppendUint32(frame, uint32(len(data)))
	return append(frame, data...)
}

func TestDecompress(t *testing.T) {
	t.Parallel()
	text := bytes.Repeat([]byte("some text, "), 100_000)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name   string
		stored []byte
		want   []byte
		kind   errdefs.Kind // Internal: it can be read
	}{
		{"nothing", nil, nil, errdefs.Internal},
		{"three bytes", []byte("abc"), []byte("abc"), errdefs.Internal},
		{"plain", text, text, errdefs.Internal},
		{"gzip", gzipped(text), text, errdefs.Internal},
		{"gzip of two members", join(gzipped(text), gzipped(text)), join(text, text), errdefs.Internal},
		{"gzip cut short", gzipped(text)[:100], nil, errdefs.NotAnImage},
		{"zstd", zstdFrame(t, text, minZstdWindow), text, errdefs.Internal},
		{"zstd with the largest window", zstdFrame(t, text, maxZstdWindow), text, errdefs.Internal},
		{"zstd with a larger window", zstdFrame(t, text, 2*maxZstdWindow), nil, errdefs.TooLarge},
		{"zstd that asks for more later", join(zstdFrame(t, text, minZstdWindow), zstdFrame(t, text, maxZstdWindow)), nil, errdefs.TooLarge},
		{"zstd:chunked", join(zstdFrame(t, text, 1<<20), zstdFrame(t, text, minZstdWindow), skippable(text), skippable([]byte("footer"))), join(text, text), errdefs.Internal},
		{"zstd cut short", zstdFrame(t, text, minZstdWindow)[:100], nil, errdefs.NotAnImage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			pool := newDecoders()
			defer pool.close()
			// Twice, and more at a time than the budget has room for.
			for range 2 {
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						r, err := decompress(t.Context(), bytes.NewReader(tc.stored), pool)
						if err != nil {
							t.Error(err)
							return
						}
						got, err := io.ReadAll(r)
						if tc.kind != errdefs.Internal {
							if kind := errdefs.KindOf(contentError(err)); kind != tc.kind {
								t.Errorf("kind %v: %v", kind, err)
							}
						} else if err != nil || !bytes.Equal(got, tc.want) {
							t.Errorf("%d bytes instead of %d, %v", len(got), len(tc.want), err)
						}
						_ = r.Close() // gzip's tells its reading's error again
					})
				}
				wg.Wait()
			}
			g.Expect(pool.budget.TryAcquire(zstdBudget)).To(BeTrue(), "all of the budget was given back")
		})
	}
}

// TestLargeWindowsAreAlone: one frame that wants much memory waits for the others, and
// they for it.
func TestLargeWindowsAreAlone(t *testing.T) {
	t.Parallel()
	text := bytes.Repeat([]byte("some text, "), 100_000)
	large, small := zstdFrame(t, text, maxZstdWindow), zstdFrame(t, text, minZstdWindow)
	for name, frames := range map[string][2][]byte{"large, then small": {large, small}, "small, then large": {small, large}, "both large": {large, large}} {
		g := NewWithT(t)
		pool := newDecoders()
		first, err := decompress(t.Context(), bytes.NewReader(frames[0]), pool)
		g.Expect(err).NotTo(HaveOccurred())
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err = decompress(ctx, bytes.NewReader(frames[1]), pool)
		g.Expect(err).To(MatchError(context.DeadlineExceeded), name)
		g.Expect(first.Close()).To(Succeed())
		second, err := decompress(t.Context(), bytes.NewReader(frames[1]), pool)
		g.Expect(err).NotTo(HaveOccurred(), name)
		g.Expect(second.Close()).To(Succeed())
		pool.close()
	}
}
