package layerpull

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/utils"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// opener turns a layer's blob into its plain form.
type opener func(io.Reader) (io.Reader, error)

// keyring holds the private keys of one pull. It never leaves the process, and
// no error says anything of its content but counts.
type keyring struct {
	dir           string
	private, x509 [][]byte
	unusable      int
}

// loadKeys reads the PEM files of a directory. Files that hold no usable key are
// counted and passed over, so that one bad file does not close the whole ring.
func loadKeys(dir string) (keyring, error) {
	ring := keyring{dir: filepath.Base(dir)}
	if dir == "" {
		return keyring{}, nil
	}
	op := "read keys directory " + ring.dir
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return ring, nil
	}
	if err != nil {
		return ring, errdefs.New(errdefs.Internal, op, causeOf(err))
	}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".pem", ".key", ".crt":
		default:
			continue
		}
		if len(ring.private)+len(ring.x509)+ring.unusable >= maxKeyFiles {
			return ring, errdefs.Newf(errdefs.TooLarge, op, "more than %d keys and certificates", maxKeyFiles)
		}
		data, err := readBounded(filepath.Join(dir, e.Name()), maxKeyBytes)
		if err != nil {
			return ring, errdefs.New(errdefs.KindOf(err), op, causeOf(err))
		}
		ring.add(data)
	}
	return ring, nil
}

// causeOf drops the path from a file error: it names a secret.
func causeOf(err error) error {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errdefs.Newf(errdefs.TooLarge, "read key", "a file has more than %d bytes", limit)
	}
	return data, err
}

// add sorts the PEM blocks of one file into the ring. A key that ocicrypt cannot
// parse would make it give up on all others.
func (k *keyring) add(data []byte) {
	found := false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		encoded := pem.EncodeToMemory(block)
		if _, err := utils.ParsePrivateKey(encoded, nil, ""); err == nil {
			k.private = append(k.private, encoded)
			found = true
		} else if _, err := utils.ParseCertificate(encoded, ""); err == nil {
			k.x509 = append(k.x509, encoded)
			found = true
		}
	}
	if !found {
		k.unusable++
	}
}

// opener returns how to open the layer. For an encrypted layer it unwraps the
// layer's key, without a request to the registry.
func (k *keyring) opener(l layer) (opener, error) {
	if !l.encrypted() {
		return func(r io.Reader) (io.Reader, error) { return r, nil }, nil
	}
	desc := imgspec.Descriptor{MediaType: l.mediaType, Digest: l.digest, Size: l.size, Annotations: l.annotations}
	config := &encconfig.DecryptConfig{Parameters: map[string][][]byte{
		"privkeys":           k.private,
		"privkeys-passwords": make([][]byte, len(k.private)),
		"x509s":              k.x509,
	}}
	if _, err := decryptLayer(config, nil, desc, true); err != nil {
		return nil, k.unavailable()
	}
	return func(r io.Reader) (io.Reader, error) {
		plain, err := decryptLayer(config, r, desc, false)
		if err != nil {
			return nil, errdefs.New(errdefs.NotAnImage, "decrypt", err)
		}
		return hmacReader{plain}, nil
	}, nil
}

// unavailable says why no key opens the layer. What ocicrypt says is left out:
// it may come from a key provider and is not ours to vouch for.
func (k *keyring) unavailable() error {
	const op = "unwrap layer key"
	switch {
	case k.dir == "":
		return errdefs.Newf(errdefs.KeyUnavailable, op, "the layer is encrypted and no keys directory is configured")
	case len(k.private) == 0:
		return errdefs.Newf(errdefs.KeyUnavailable, op, "the layer is encrypted and keys directory %s holds no usable private key (%d files without one)", k.dir, k.unusable)
	}
	return errdefs.Newf(errdefs.KeyUnavailable, op, "none of the %d private keys in keys directory %s opens the layer", len(k.private), k.dir)
}

// decryptLayer calls ocicrypt, which panics when the wrapped options hold a nonce
// of the wrong length: whoever has the public key can wrap such options.
func decryptLayer(config *encconfig.DecryptConfig, r io.Reader, desc imgspec.Descriptor, unwrapOnly bool) (plain io.Reader, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed cipher options: %v", p)
		}
	}()
	plain, _, err = ocicrypt.DecryptLayer(config, r, desc, unwrapOnly)
	return plain, err
}

// hmacReader gives a failed authentication its kind. ocicrypt holds the last
// bytes back until the HMAC has been checked, and reports it in place of EOF.
type hmacReader struct{ r io.Reader }

func (h hmacReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	var known *errdefs.Error
	if errors.As(err, &known) {
		return n, err // from the blob below
	}
	return n, errdefs.Newf(errdefs.DigestMismatch, "decrypt", "the ciphertext does not match its HMAC")
}
