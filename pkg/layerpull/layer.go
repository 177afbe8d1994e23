package layerpull

import (
	"cmp"
	"context"
	"hash"
	"io"
	"math"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// ensure brings one layer into the store, unless it is there.
func (p *puller) ensure(ctx context.Context, l layer) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeouts.Layer)
	defer cancel()
	unlock, err := p.store.lock(ctx, l.diffID.Encoded())
	if err != nil {
		return err
	}
	defer unlock()
	if p.store.has(l.diffID) { // another pull of this store brought it meanwhile
		p.meter.bytes.Add(l.size)
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
	open, wipe, err := p.opener(ctx, l)
	if err != nil {
		return none, err
	}
	defer wipe()
	blob, err := p.src.blob(ctx, l.digest, l.size)
	if err != nil {
		return none, err
	}
	blob.count = &p.meter.bytes
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

// decode runs the stream from the blob to the directory, in three goroutines:
// fetch, check and decrypt; decompress; hash, and write the files.
func (p *puller) decode(ctx context.Context, l layer, dir string, blob io.Reader, open opener) (unpacked, error) {
	none := unpacked{}
	opened, err := open(blob)
	if err != nil {
		return none, err
	}
	plain := readAhead(opened, &p.buffers)
	defer plain.close()
	content, err := decompress(ctx, plain, p.decoders)
	if err != nil {
		return none, err
	}
	defer func() { _ = content.Close() }()
	inflated := readAhead(content, &p.buffers)
	defer inflated.close()
	stream := p.diffStream(inflated, l)
	buf := p.buffers.get()
	defer p.buffers.put(buf)
	u := unpacker{dir: dir, limits: p.limits, room: &p.room, buf: buf}
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
	over error // what reading beyond left is
}

// diffStream bounds a layer by its bytes and by its ratio. A size that the
// manifest overstates only loosens the second; the end of the blob shows the lie.
func (p *puller) diffStream(r io.Reader, l layer) *diffStream {
	d := &diffStream{r: r, hash: l.diffID.Algorithm().Hash(), left: p.limits.LayerBytes, over: layerTooLarge()}
	ratio := int64(p.limits.Ratio)
	if l.size < (math.MaxInt64-ratioGrace)/ratio && ratioGrace+l.size*ratio < d.left {
		d.left = ratioGrace + l.size*ratio
		d.over = errdefs.Newf(errdefs.TooLarge, "unpack", "the layer unpacks to more than %d times its size", ratio)
	}
	return d
}

// Read implements [io.Reader].
func (d *diffStream) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if d.left -= int64(n); d.left < 0 {
		return 0, d.over
	}
	d.hash.Write(p[:n]) // hash.Hash never fails
	return n, err
}

func layerTooLarge() error {
	return errdefs.Newf(errdefs.TooLarge, "unpack", "the layer unpacks to more bytes than the limit allows")
}
