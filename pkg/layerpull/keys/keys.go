// Package keys unwraps the keys of encrypted layers.
//
// A layer carries its key in its annotations, wrapped once per recipient. A [Ring]
// tries what the node has: private keys from files (JWE and PKCS7), then the key
// providers of an ocicrypt_keyprovider.conf, by command, gRPC or ttrpc, as the CoCo
// attestation agent and confidential data hub speak it. What comes out is a
// [LayerKey], which decrypts the layer and shows its key to nobody.
//
// ocicrypt's key wrappers are used one by one, never through its registry: that is
// a global of its package, filled from an environment variable at start, and its
// list of wrappers has no ttrpc. Nothing here forces it, because only
// ocicrypt.EncryptLayer and DecryptLayer look wrappers up there.
//
// Secrets are wiped when they are no longer needed, as far as Go allows: the bytes
// that this package holds are; what the standard library expands them to (an AES
// key schedule, an RSA key's numbers), and the buffers of RPC libraries, are left
// to the garbage collector. [NoCoreDump] keeps them all from core files. No error
// has any text that came from a key provider, and nothing is logged.
package keys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Config says where keys come from. The zero value has none.
type Config struct {
	// Dir is a directory of PEM files (*.pem, *.key, *.crt) with private keys and,
	// for PKCS7, certificates. "" means none; a missing directory holds none.
	Dir string
	// ProvidersFile is an ocicrypt_keyprovider.conf. "" means no key providers; as
	// for ocicrypt, a missing file has none either.
	ProvidersFile string
	// ProviderTimeout bounds what one provider may take for one layer; zero means
	// [DefaultProviderTimeout].
	ProviderTimeout time.Duration
}

// Ring holds the keys and key providers of one pull. It may be used by several
// layers at once.
type Ring struct {
	files     fileKeys
	providers map[string]Provider
	hasConfig bool
	timeout   time.Duration
}

// Open reads the files that cfg names. No provider is contacted. Files that hold no
// usable key are passed over, so that one bad file does not close the whole ring.
//
// Errors: Internal for what cannot be read, InvalidArgument for a malformed
// configuration of providers, TooLarge. The caller must Close the ring.
func Open(cfg Config) (*Ring, error) {
	files, err := loadFiles(cfg.Dir)
	if err != nil {
		return nil, err
	}
	providers, err := LoadProviders(cfg.ProvidersFile)
	if err != nil {
		files.wipe()
		return nil, err
	}
	return &Ring{
		files: files, providers: providers, hasConfig: cfg.ProvidersFile != "",
		timeout: cmp.Or(cfg.ProviderTimeout, DefaultProviderTimeout),
	}, nil
}

// Close wipes the private keys. The ring must not be used afterwards.
func (r *Ring) Close() { r.files.wipe() }

// Unwrap returns the key of the layer that has these annotations. Private keys from
// files are tried first, which asks nobody; then the providers that the layer
// names, in the order of their names.
//
// Errors: KeyUnavailable, which says for each source why it gave no key; NotAnImage,
// Unsupported and TooLarge for what the annotations say, and NotAnImage for a key that
// a private key opens but that is none; Canceled and DeadlineExceeded when ctx ended.
// The caller must Wipe the key.
func (r *Ring) Unwrap(ctx context.Context, annotations map[string]string) (*LayerKey, error) {
	const op = "unwrap layer key"
	w, err := parseAnnotations(annotations)
	if err != nil {
		return nil, err
	}
	key, broken := r.fromFiles(ctx, w)
	var reasons []string
	if key == nil {
		key, reasons = r.fromProviders(ctx, w)
	}
	switch {
	case key != nil:
		return key, nil
	case ctx.Err() != nil:
		return nil, errdefs.New(errdefs.KindOf(ctx.Err()), op, ctx.Err())
	case broken != nil:
		return nil, errdefs.New(errdefs.NotAnImage, op, broken)
	}
	reasons = append([]string{r.files.unavailable()}, reasons...)
	return nil, errdefs.New(errdefs.KeyUnavailable, op, errors.New("the layer is encrypted and "+strings.Join(reasons, "; ")))
}

// fromFiles tries the private keys. The error is that of a packet that one opens.
func (r *Ring) fromFiles(ctx context.Context, w wrapped) (*LayerKey, error) {
	var broken error
	for _, p := range w.files {
		if len(r.files.private) == 0 || ctx.Err() != nil {
			break
		}
		options, err := r.files.unwrap(p)
		if err != nil {
			continue
		}
		key, err := parseLayerKey(options, w.public)
		if err == nil {
			return key, nil
		}
		broken = err
	}
	return nil, broken
}

// fromProviders asks the providers that the layer names.
func (r *Ring) fromProviders(ctx context.Context, w wrapped) (*LayerKey, []string) {
	var reasons, unknown []string
	for _, named := range w.providers {
		provider, ok := r.providers[named.name]
		if ctx.Err() != nil {
			break
		}
		if !ok {
			unknown = append(unknown, fmt.Sprintf("%q", named.name))
			continue
		}
		key, err := r.ask(ctx, provider, named.packets, w.public)
		if err == nil {
			return key, nil
		}
		reasons = append(reasons, fmt.Sprintf("key provider %q (%s): %v", provider.name, provider.method(), err))
	}
	if len(unknown) > 0 && r.hasConfig {
		reasons = append(reasons, "no key provider is configured with the name "+strings.Join(unknown, " or "))
	} else if len(unknown) > 0 {
		reasons = append(reasons, "no key providers are configured, the layer names "+strings.Join(unknown, " and "))
	}
	return nil, reasons
}

// ask hands one provider the packets that are for it. The error is that of the last
// packet, and safe to show.
func (r *Ring) ask(ctx context.Context, p Provider, packets [][]byte, public publicOptions) (*LayerKey, error) {
	limited, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	err := errors.New("the layer has no packet for it")
	for _, packet := range packets {
		var options []byte
		if options, err = p.unwrap(limited, packet); err != nil {
			if limited.Err() != nil {
				return nil, errNoAnswer
			}
			continue
		}
		var key *LayerKey
		if key, err = parseLayerKey(options, public); err == nil {
			return key, nil
		}
	}
	return nil, err
}

// sortedKeys lists the keys of m in their order.
func sortedKeys[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
