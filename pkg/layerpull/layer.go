package layerpull

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// ensure brings one layer into the store, unless it is there.
func (p *puller) ensure(ctx context.Context, l layer) error {
	unlock, err := p.store.lock(ctx, l.diffID.Encoded())
	if err != nil {
		return err
	}
	defer unlock()
	if p.store.has(l.diffID) {
		return nil
	}
	dir, err := p.store.begin(l.diffID)
	if err != nil {
		return err
	}
	got, err := p.fetch(ctx, l, dir)
	if err == nil {
		err = p.store.commit(l.diffID, got)
	}
	if err != nil {
		// The error is already known, and the next OpenStore removes what is left.
		_ = os.RemoveAll(dir)
		return err
	}
	p.layers.Add(1)
	p.bytes.Add(l.size)
	return nil
}

// fetch unpacks the layer into dir. On success all of the blob was read and all that
// can be checked was.
func (p *puller) fetch(ctx context.Context, l layer, dir string) (unpacked, error) {
	none := unpacked{}
	// Before the request: without a key the layer is of no use.
	open, err := p.keys.opener(l)
	if err != nil {
		return none, err
	}
	blob, err := p.src.blob(ctx, l.digest, l.size)
	if err != nil {
		return none, err
	}
	defer func() { _ = blob.Close() }()
	got, err := p.decode(ctx, l, dir, blob, open)
	if err == nil {
		return got, blob.verify()
	}
	if blob.cause != nil || ctx.Err() != nil {
		// The stream broke; what the decoders said of it is noise.
		return none, cmp.Or(blob.cause, ctx.Err())
	}
	// Garbage is either a malformed layer or one that was changed on the way. The
	// digest of the whole tells which.
	err = contentError(err)
	if errdefs.Is(err, errdefs.NotAnImage) || errdefs.Is(err, errdefs.DigestMismatch) {
		if e := blob.verify(); e != nil {
			return none, e
		}
	}
	return none, err
}

// decode runs the stream from the blob to the directory.
func (p *puller) decode(ctx context.Context, l layer, dir string, blob io.Reader, open opener) (unpacked, error) {
	none := unpacked{}
	plain, err := open(blob)
	if err != nil {
		return none, err
	}
	content, err := decompress(plain)
	if err != nil {
		return none, err
	}
	defer func() { _ = content.Close() }()
	stream := &diffStream{r: content, hash: l.diffID.Algorithm().Hash(), left: p.limits.LayerBytes}
	u := unpacker{dir: dir, limits: p.limits, room: &p.room}
	got, err := u.unpack(ctx, stream)
	if err != nil {
		return none, err
	}
	// Tails: what follows the archive is part of the diff ID, and what follows the
	// compressed stream is part of the ciphertext, whose HMAC comes with its EOF.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return none, err
	}
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return none, err
	}
	if sum := digest.NewDigest(l.diffID.Algorithm(), stream.hash); sum != l.diffID {
		return none, errdefs.Newf(errdefs.DigestMismatch, "check diff ID", "the content is %s, the image config says %s", sum, l.diffID)
	}
	return got, nil
}

// diffStream hashes the uncompressed layer and bounds it.
type diffStream struct {
	r    io.Reader
	hash hash.Hash
	left int64
}

func (d *diffStream) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if d.left -= int64(n); d.left < 0 {
		return 0, errLayerTooLarge
	}
	d.hash.Write(p[:n]) // hash.Hash never fails
	return n, err
}

var errLayerTooLarge = errdefs.Newf(errdefs.TooLarge, "unpack", "the layer unpacks to more bytes than the limit allows")

// The first bytes of the compressed forms (RFC 1952, RFC 8878). A zstd:chunked
// layer begins with an ordinary frame.
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress returns the tar stream in r, whichever way it is compressed.
func decompress(r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		return gzip.NewReader(buffered)
	case bytes.Equal(magic, zstdMagic):
		// One goroutine: layers run side by side, and its memory is bounded.
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return zstdCloser{z}, nil
	}
	return io.NopCloser(buffered), nil
}

// zstdCloser makes a decoder a ReadCloser and tells a window that is too large
// from a broken stream.
type zstdCloser struct{ *zstd.Decoder }

func (z zstdCloser) Read(p []byte) (int, error) {
	n, err := z.Decoder.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		err = errdefs.New(errdefs.TooLarge, "decompress", fmt.Errorf("%w: the limit is %d bytes", err, maxZstdWindow))
	}
	return n, err
}

func (z zstdCloser) Close() error {
	z.Decoder.Close()
	return nil
}
