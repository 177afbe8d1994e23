package keys

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/containers/ocicrypt/keywrap/pkcs7"
	"github.com/containers/ocicrypt/utils"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// fileKeys holds the private keys and certificates of a directory, PEM encoded.
type fileKeys struct {
	// configured says that there is a directory; name is its last element, which is
	// all that errors show of it.
	configured    bool
	name          string
	private, x509 [][]byte
	// unusable counts the files without a usable key.
	unusable int
}

func loadFiles(dir string) (keys fileKeys, err error) {
	if dir == "" {
		return fileKeys{}, nil
	}
	keys = fileKeys{configured: true, name: filepath.Base(dir)}
	op := "read keys directory " + keys.name
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return keys, nil
	}
	if err != nil {
		return keys, errdefs.New(errdefs.Internal, op, causeOf(err))
	}
	defer func() {
		if err != nil {
			keys.wipe()
		}
	}()
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".pem", ".key", ".crt":
		default:
			continue
		}
		if len(keys.private)+len(keys.x509)+keys.unusable >= maxKeyFiles {
			return keys, errdefs.Newf(errdefs.TooLarge, op, "more than %d keys and certificates", maxKeyFiles)
		}
		data, err := readBounded(filepath.Join(dir, e.Name()), maxKeyBytes)
		if err != nil {
			return keys, errdefs.New(errdefs.KindOf(err), op, causeOf(err))
		}
		keys.add(data)
		clear(data)
	}
	return keys, nil
}

// causeOf drops the path from a file error: it names a secret.
func causeOf(err error) error {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// readBounded reads a file into one buffer, so that no outgrown copy of a secret is
// left behind.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, limit+1)
	n, err := io.ReadFull(f, buf)
	switch {
	case err == nil:
		clear(buf)
		return nil, errdefs.Newf(errdefs.TooLarge, "read file", "it has more than %d bytes", limit)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return buf[:n], nil
	}
	clear(buf)
	return nil, err
}

// add sorts the PEM blocks of one file. A key that ocicrypt cannot parse would make
// it give up on all others.
func (k *fileKeys) add(data []byte) {
	found := false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		encoded := pem.EncodeToMemory(block)
		clear(block.Bytes)
		if _, err := utils.ParsePrivateKey(encoded, nil, ""); err == nil {
			k.private = append(k.private, encoded)
			found = true
		} else if _, err := utils.ParseCertificate(encoded, ""); err == nil {
			k.x509 = append(k.x509, encoded)
			found = true
		} else {
			clear(encoded)
		}
	}
	if !found {
		k.unusable++
	}
}

func (k *fileKeys) wipe() {
	for _, key := range k.private {
		clear(key)
	}
	k.private = nil
}

// unwrap opens one packet with whichever private key fits. What ocicrypt says is of
// no use to anybody who may read it: a wrong key is not told from a broken packet.
func (k *fileKeys) unwrap(p packet) (options []byte, err error) {
	defer func() {
		if recover() != nil {
			options, err = nil, errors.New("malformed packet")
		}
	}()
	wrapper := jwe.NewKeyWrapper()
	if p.pkcs7 {
		wrapper = pkcs7.NewKeyWrapper()
	}
	return wrapper.UnwrapKey(&encconfig.DecryptConfig{Parameters: map[string][][]byte{
		"privkeys":           k.private,
		"privkeys-passwords": make([][]byte, len(k.private)),
		"x509s":              k.x509,
	}}, p.data)
}

// unavailable says why no private key opens the layer.
func (k *fileKeys) unavailable() string {
	switch {
	case !k.configured:
		return "no keys directory is configured"
	case len(k.private) == 0:
		return fmt.Sprintf("keys directory %s holds no usable private key (%d other *.pem, *.key and *.crt files)", k.name, k.unusable)
	}
	return fmt.Sprintf("none of the %d private keys in keys directory %s opens the layer", len(k.private), k.name)
}
