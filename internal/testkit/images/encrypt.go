package images

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containers/image/v5/copy"
	"github.com/containers/image/v5/docker"
	ocilayout "github.com/containers/image/v5/oci/layout"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	encconfig "github.com/containers/ocicrypt/config"
)

// The names of the files that [GenerateKeys] writes.
const (
	PrivateKeyFile = "private.pem"
	PublicKeyFile  = "public.pem"
)

// Encryption says how to encrypt an image's layers.
type Encryption struct {
	// PublicKeys are PEM encoded; the layer keys are wrapped as JWE for each.
	PublicKeys [][]byte
	// Certificates are PEM encoded; the layer keys are wrapped as PKCS7 for each.
	Certificates [][]byte
	// Layers lists the layers to encrypt, 0 the lowest, negative from the top;
	// none means all.
	Layers []int
}

// GenerateKeys writes a new RSA key pair to dir, which is created if missing.
func GenerateKeys(dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("generate key: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode private key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encode public key: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	if err := writePEM(filepath.Join(dir, PrivateKeyFile), "PRIVATE KEY", private, 0o600); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, PublicKeyFile), "PUBLIC KEY", public, 0o644)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	return nil
}

func encrypt(ctx context.Context, from, to, tag string, e Encryption) error {
	config := &encconfig.EncryptConfig{Parameters: map[string][][]byte{}}
	if len(e.PublicKeys) > 0 {
		config.Parameters["pubkeys"] = e.PublicKeys
	}
	if len(e.Certificates) > 0 {
		config.Parameters["x509s"] = e.Certificates
	}
	src, err := ocilayout.NewReference(from, tag)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	dest, err := ocilayout.NewReference(to, tag)
	if err != nil {
		return err
	}
	layers := e.Layers
	if layers == nil {
		layers = []int{}
	}
	return copyImage(ctx, dest, src, &copy.Options{
		OciEncryptConfig: config, OciEncryptLayers: &layers, DestinationCtx: &types.SystemContext{},
	})
}

// Push copies the image with the given tag from the layout at dir to a plain
// HTTP registry. dest is "host:port/repository:tag".
// The digests stay as they are.
func Push(ctx context.Context, dir, tag, dest string) error {
	src, err := ocilayout.NewReference(dir, tag)
	if err != nil {
		return fmt.Errorf("push %s: %w", dest, err)
	}
	ref, err := docker.ParseReference("//" + dest)
	if err != nil {
		return fmt.Errorf("push %s: %w", dest, err)
	}
	return copyImage(ctx, ref, src, &copy.Options{
		PreserveDigests: true,
		DestinationCtx:  &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue},
	})
}

func copyImage(ctx context.Context, dest, src types.ImageReference, opts *copy.Options) (err error) {
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	defer func() {
		if e := policy.Destroy(); err == nil {
			err = e
		}
	}()
	// copy.Image would leave a cache in /var/lib/containers.
	cache, err := os.MkdirTemp("", "mkimage-cache-")
	if err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	defer func() { _ = os.RemoveAll(cache) }()
	opts.DestinationCtx.BlobInfoCacheDir = cache
	opts.ImageListSelection = copy.CopyAllImages
	if _, err := copy.Image(ctx, policy, dest, src, opts); err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	return nil
}
