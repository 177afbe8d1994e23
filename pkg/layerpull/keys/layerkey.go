package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containers/ocicrypt/blockcipher"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The lengths of AES_256_CTR_HMAC_SHA256, in bytes. ocicrypt checks the key alone,
// and panics on a nonce of another length, which whoever wraps keys can write.
const (
	keyBytes   = 32
	nonceBytes = aes.BlockSize
	hmacBytes  = sha256.Size
)

const nonceOption = "nonce"

// LayerKey decrypts one layer. It never shows its key.
type LayerKey struct {
	// Behind a pointer, so that no copy of a LayerKey prints it either.
	secret *secret
}

type secret struct {
	key   []byte
	nonce []byte
	hmac  []byte
}

// Format says nothing of the key, whatever the verb.
func (*LayerKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "layer key") }

// publicOptions is what an image says in plain of how a layer is encrypted.
type publicOptions struct {
	hmac []byte
	// nonce is there if it was not wrapped with the key.
	nonce []byte
}

// parsePublic reads the cipher's public options. Nobody need be asked for the key of
// a layer that could not be decrypted with it.
func parsePublic(data []byte) (publicOptions, error) {
	const op = "read cipher options of the layer"
	var pub blockcipher.PublicLayerBlockCipherOptions
	if len(data) > maxOptionsBytes {
		return publicOptions{}, errdefs.Newf(errdefs.TooLarge, op, "more than %d bytes", maxOptionsBytes)
	}
	if err := json.Unmarshal(data, &pub); err != nil && len(data) > 0 {
		return publicOptions{}, errdefs.New(errdefs.NotAnImage, op, err)
	}
	switch {
	case pub.CipherType == "":
		return publicOptions{}, errdefs.Newf(errdefs.NotAnImage, op, "they name no cipher")
	case pub.CipherType != blockcipher.AES256CTR:
		return publicOptions{}, errdefs.Newf(errdefs.Unsupported, op, "the cipher is %.40q, only %s is supported", string(pub.CipherType), blockcipher.AES256CTR)
	case len(pub.Hmac) != hmacBytes:
		return publicOptions{}, errdefs.Newf(errdefs.NotAnImage, op, "the HMAC has %d bytes, it must have %d", len(pub.Hmac), hmacBytes)
	}
	return publicOptions{hmac: pub.Hmac, nonce: pub.CipherOptions[nonceOption]}, nil
}

// parseLayerKey reads the cipher's private options, as a key wrapper gave them, and
// wipes them.
func parseLayerKey(private []byte, public publicOptions) (*LayerKey, error) {
	defer clear(private)
	if len(private) > maxOptionsBytes {
		return nil, fmt.Errorf("the cipher's options have more than %d bytes", maxOptionsBytes)
	}
	var options blockcipher.PrivateLayerBlockCipherOptions
	// What encoding/json says may quote what it read.
	err := errors.New("the released key is not what ocicrypt wraps")
	if json.Unmarshal(private, &options) == nil {
		var nonce []byte
		if nonce, err = chooseNonce(options.CipherOptions[nonceOption], public.nonce); err == nil {
			err = checkLengths(options.SymmetricKey, nonce)
		}
		if err == nil {
			return &LayerKey{&secret{key: options.SymmetricKey, nonce: nonce, hmac: public.hmac}}, nil
		}
	}
	clear(options.SymmetricKey)
	return nil, err
}

// chooseNonce prefers the one that was wrapped with the key. ocicrypt would take the
// one in plain, which anybody can change.
func chooseNonce(wrapped, plain []byte) ([]byte, error) {
	switch {
	case wrapped == nil:
		return plain, nil
	case plain != nil && !bytes.Equal(wrapped, plain):
		return nil, errors.New("the layer has two different nonces")
	}
	return wrapped, nil
}

func checkLengths(key, nonce []byte) error {
	if len(key) != keyBytes {
		return fmt.Errorf("the key has %d bytes, it must have %d", len(key), keyBytes)
	}
	if len(nonce) != nonceBytes {
		return fmt.Errorf("the nonce has %d bytes, it must have %d", len(nonce), nonceBytes)
	}
	return nil
}

// Open returns the plain form of the ciphertext in r. What it reads is not
// authenticated before it has said [io.EOF]: in place of that it answers an error of
// kind DigestMismatch if the ciphertext is not what was encrypted. An error of r is
// passed on as it is. Open may be called again, to begin from the start.
//
// It fails after [LayerKey.Wipe].
func (k *LayerKey) Open(r io.Reader) (io.Reader, error) {
	const op = "decrypt"
	if k.secret.key == nil {
		return nil, errdefs.Newf(errdefs.Internal, op, "the layer's key was wiped")
	}
	block, err := aes.NewCipher(k.secret.key)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	return &plainReader{
		r: r, stream: cipher.NewCTR(block, k.secret.nonce), mac: hmac.New(sha256.New, k.secret.key), want: k.secret.hmac,
	}, nil
}

// Wipe forgets the key. Readers that are open go on.
func (k *LayerKey) Wipe() {
	clear(k.secret.key)
	k.secret.key = nil
}

// plainReader decrypts in place, in the caller's buffer.
type plainReader struct {
	r      io.Reader
	stream cipher.Stream
	mac    hash.Hash
	want   []byte
	err    error
}

// Read implements [io.Reader].
func (p *plainReader) Read(buf []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.r.Read(buf)
	p.mac.Write(buf[:n]) // hash.Hash never fails
	p.stream.XORKeyStream(buf[:n], buf[:n])
	if errors.Is(err, io.EOF) && !hmac.Equal(p.mac.Sum(nil), p.want) {
		clear(buf[:n])
		n, err = 0, errdefs.Newf(errdefs.DigestMismatch, "decrypt", "the ciphertext does not match its HMAC")
	}
	p.err = err
	return n, err
}
