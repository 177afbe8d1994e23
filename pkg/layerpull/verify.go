package layerpull

import (
	"errors"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// verifier reads a blob and checks its size and digest: the size on each read,
// both in verify. It keeps the error that ended the reading, so that the cause
// of a failure further down the stream is known.
type verifier struct {
	body  io.ReadCloser
	want  digest.Digest
	hash  hash.Hash
	size  int64
	read  int64
	cause error
	// count, where there is one, gets the bytes as they come.
	count *atomic.Int64
}

func newVerifier(body io.ReadCloser, want digest.Digest, size int64) *verifier {
	return &verifier{body: body, want: want, hash: want.Algorithm().Hash(), size: size}
}

// Read implements [io.Reader].
func (v *verifier) Read(p []byte) (int, error) {
	if v.cause != nil {
		return 0, v.cause
	}
	n, err := v.body.Read(p)
	v.read += int64(n)
	if v.read > v.size {
		v.cause = errdefs.Newf(errdefs.DigestMismatch, "read blob "+v.want.String(), "it has more than the %d bytes that the manifest says", v.size)
		return 0, v.cause
	}
	v.hash.Write(p[:n]) // hash.Hash never fails
	if v.count != nil {
		v.count.Add(int64(n))
	}
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return n, err
	default:
		v.cause = registryError("read blob "+v.want.String(), err)
		return n, v.cause
	}
}

// verify reads the rest of the blob and checks the whole.
func (v *verifier) verify() error {
	if _, err := io.Copy(io.Discard, v); err != nil {
		return err
	}
	if v.read != v.size {
		return errdefs.Newf(errdefs.DigestMismatch, "check blob "+v.want.String(), "it has %d bytes, the manifest says %d", v.read, v.size)
	}
	if got := digest.NewDigest(v.want.Algorithm(), v.hash); got != v.want {
		return errdefs.Newf(errdefs.DigestMismatch, "check blob "+v.want.String(), "its content is %s", got)
	}
	return nil
}

// Close implements [io.Closer].
func (v *verifier) Close() error { return v.body.Close() }
