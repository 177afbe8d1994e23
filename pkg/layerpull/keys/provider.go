package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap"
)

// The operations of the key provider protocol, and the service's methods for them.
const (
	opWrap       = "keywrap"
	opUnwrap     = "keyunwrap"
	methodWrap   = "WrapKey"
	methodUnwrap = "UnWrapKey"
)

// input is a request of the key provider protocol. Byte fields are base64, and
// both objects must be there whichever the operation is: the confidential data hub
// parses all of it.
type input struct {
	Operation string       `json:"op"`
	Wrap      wrapParams   `json:"keywrapparams"`
	Unwrap    unwrapParams `json:"keyunwrapparams"`
}

type wrapParams struct {
	Config  *encryptConfig `json:"ec"`
	Options []byte         `json:"optsdata"`
}

type unwrapParams struct {
	Config     *decryptConfig `json:"dc"`
	Annotation []byte         `json:"annotation"`
}

// The parameters must be objects, not null, for the confidential data hub.
type encryptConfig struct {
	Parameters    map[string][][]byte
	DecryptConfig decryptConfig
}

type decryptConfig struct {
	Parameters map[string][][]byte
}

// output is a reply. A []byte takes both forms that providers send: base64, and a
// list of numbers.
type output struct {
	Wrap struct {
		Annotation []byte `json:"annotation"`
	} `json:"keywrapresults"`
	Unwrap struct {
		Options []byte `json:"optsdata"`
	} `json:"keyunwrapresults"`
}

// call sends one request. The reply is raw and the caller's to wipe. The error is
// safe to show: it has no text that came from the provider.
func (p Provider) call(ctx context.Context, method string, in input) ([]byte, error) {
	request, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	defer clear(request)
	switch p.method() {
	case methodCommand:
		return p.callCommand(ctx, request)
	case methodGRPC:
		return p.callGRPC(ctx, method, request)
	case methodTTRPC:
		return p.callTTRPC(ctx, method, request)
	}
	return nil, errors.New("its configuration has none of cmd, grpc and ttrpc")
}

// unwrap asks for the options in a packet. Unlike ocicrypt it sends no private key
// along.
func (p Provider) unwrap(ctx context.Context, packet []byte) ([]byte, error) {
	reply, err := p.call(ctx, methodUnwrap, input{
		Operation: opUnwrap,
		Unwrap:    unwrapParams{Config: &decryptConfig{Parameters: map[string][][]byte{}}, Annotation: packet},
	})
	if err != nil {
		return nil, err
	}
	defer clear(reply)
	out, err := parseReply(reply)
	if err != nil {
		return nil, err
	}
	if len(out.Unwrap.Options) == 0 {
		return nil, errors.New("the reply has no key")
	}
	return out.Unwrap.Options, nil
}

// wrap asks for a packet that holds the options.
func (p Provider) wrap(ctx context.Context, parameters map[string][][]byte, options []byte) ([]byte, error) {
	reply, err := p.call(ctx, methodWrap, input{
		Operation: opWrap,
		Wrap: wrapParams{
			Config:  &encryptConfig{Parameters: parameters, DecryptConfig: decryptConfig{Parameters: map[string][][]byte{}}},
			Options: options,
		},
	})
	if err != nil {
		return nil, err
	}
	out, err := parseReply(reply)
	if err != nil {
		return nil, err
	}
	if len(out.Wrap.Annotation) == 0 {
		return nil, errors.New("the reply has no packet")
	}
	return out.Wrap.Annotation, nil
}

func parseReply(reply []byte) (output, error) {
	var out output
	if len(reply) > maxReplyBytes {
		return out, errReplyTooLong
	}
	if json.Unmarshal(reply, &out) != nil { // what it says may quote the reply
		clear(out.Unwrap.Options)
		return output{}, errors.New("the reply is not of the key provider protocol")
	}
	return out, nil
}

var errReplyTooLong = fmt.Errorf("the reply has more than %d bytes", maxReplyBytes)

// KeyWrapper makes the provider a key wrapper of ocicrypt, also for ttrpc, for as
// long as ctx lasts and [DefaultProviderTimeout] per call. Like ocicrypt's own, it
// wraps only for an EncryptConfig that has parameters under the provider's name.
func (p Provider) KeyWrapper(ctx context.Context) keywrap.KeyWrapper {
	return &keyWrapper{
		annotation: annotationProvider + p.name,
		wrap: func(ec *encconfig.EncryptConfig, options []byte) ([]byte, error) {
			if _, ok := ec.Parameters[p.name]; !ok {
				return nil, nil
			}
			ctx, cancel := context.WithTimeout(ctx, DefaultProviderTimeout)
			defer cancel()
			return p.wrap(ctx, map[string][][]byte{p.name: ec.Parameters[p.name]}, options)
		},
		unwrap: func(packet []byte) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, DefaultProviderTimeout)
			defer cancel()
			return p.unwrap(ctx, packet)
		},
	}
}

// keyWrapper is what ocicrypt takes; its methods have no context.
type keyWrapper struct {
	annotation string
	wrap       func(*encconfig.EncryptConfig, []byte) ([]byte, error)
	unwrap     func([]byte) ([]byte, error)
}

var _ keywrap.KeyWrapper = (*keyWrapper)(nil)

// WrapKeys implements [keywrap.KeyWrapper].
func (k *keyWrapper) WrapKeys(ec *encconfig.EncryptConfig, options []byte) ([]byte, error) {
	return k.wrap(ec, options)
}

// UnwrapKey implements [keywrap.KeyWrapper]. The configuration, which may hold
// private keys, is not handed to the provider.
func (k *keyWrapper) UnwrapKey(_ *encconfig.DecryptConfig, packet []byte) ([]byte, error) {
	return k.unwrap(packet)
}

// GetAnnotationID implements [keywrap.KeyWrapper].
func (k *keyWrapper) GetAnnotationID() string { return k.annotation }

// NoPossibleKeys implements [keywrap.KeyWrapper]: a provider may always have one.
func (*keyWrapper) NoPossibleKeys(map[string][][]byte) bool { return false }

// GetPrivateKeys implements [keywrap.KeyWrapper]: a provider shows none.
func (*keyWrapper) GetPrivateKeys(map[string][][]byte) [][]byte { return nil }

// GetKeyIdsFromPacket implements [keywrap.KeyWrapper]: a packet is the provider's.
func (*keyWrapper) GetKeyIdsFromPacket(string) ([]uint64, error) { //nolint:revive // var-naming: the name is ocicrypt's.
	return nil, nil
}

// GetRecipients implements [keywrap.KeyWrapper]: a packet is the provider's.
func (*keyWrapper) GetRecipients(string) ([]string, error) { return nil, nil }
