// Package keybroker is a key provider for tests, as the CoCo attestation agent and
// confidential data hub are one: it wraps and unwraps layer keys for real, over
// gRPC, over ttrpc and as a command, and can refuse, hang, leave or answer garbage.
//
// It is written on ocicrypt's generated code and types, and so shares none with the
// client that it tests.
package keybroker

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/containers/ocicrypt/keywrap/keyprovider"
	pb "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// TB is what the broker needs of a test.
type TB = fakeregistry.TB

// KID is the id of the one key that a broker holds.
const KID = "kbs:///default/key/1"

// Behaviour says how the broker answers. The zero value releases keys, with byte
// fields as Go writes them.
type Behaviour struct {
	// Numbers makes byte fields lists of numbers, as the confidential data hub does.
	Numbers bool
	// Refuse makes it answer an error with this text and the code PermissionDenied;
	// "" does not.
	Refuse string
	// Hang makes it answer nothing until the caller is gone or the test ends.
	Hang bool
	// Raw is the reply in place of a right one; nil means none.
	Raw []byte
	// Mangle, if set, changes the unwrapped options before they are sent.
	Mangle func(options []byte) []byte
}

// Request is what the broker was asked.
type Request struct {
	// Operation is "keywrap" or "keyunwrap".
	Operation string
	// KID is the key id in the packet to unwrap.
	KID string
	// Parameters are those of the encryption or decryption configuration, by name.
	Parameters map[string][][]byte
	// JSON is the whole request.
	JSON []byte
}

// Broker is a running key provider.
type Broker struct {
	kek  cipher.AEAD
	done chan struct{}

	mu        sync.Mutex
	behaviour Behaviour
	requests  []Request
	hanging   chan struct{}
}

// New makes a broker with a key of its own. It serves nobody yet.
func New(t TB) *Broker {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatalf("make key: %v", err)
	}
	kek, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatalf("make key: %v", err)
	}
	b := &Broker{kek: kek, done: make(chan struct{}), hanging: make(chan struct{}, 1)}
	t.Cleanup(func() { close(b.done) })
	return b
}

// Behave makes the broker answer like this from now on.
func (b *Broker) Behave(behaviour Behaviour) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.behaviour = behaviour
}

// Requests lists what was asked so far.
func (b *Broker) Requests() []Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Request(nil), b.requests...)
}

// Hanging receives when a request has begun to hang.
func (b *Broker) Hanging() <-chan struct{} { return b.hanging }

// packet is the annotation packet of CoCo, version 1.
type packet struct {
	KID         string `json:"kid"`
	WrappedData string `json:"wrapped_data"`
	IV          string `json:"iv"`
	WrapType    string `json:"wrap_type"`
}

const wrapType = "A256GCM"

// answer handles one request of the protocol.
func (b *Broker) answer(ctx context.Context, request []byte) ([]byte, error) {
	var in keyprovider.KeyProviderKeyWrapProtocolInput
	if err := json.Unmarshal(request, &in); err != nil {
		return nil, status.Error(codes.InvalidArgument, "no request of the protocol")
	}
	behaviour := b.record(in, request)
	switch {
	case behaviour.Hang:
		select {
		case b.hanging <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-b.done:
			return nil, status.Error(codes.Canceled, "the test is over")
		}
	case behaviour.Refuse != "":
		return nil, status.Error(codes.PermissionDenied, behaviour.Refuse)
	case behaviour.Raw != nil:
		return behaviour.Raw, nil
	case in.Operation == keyprovider.OpKeyWrap:
		annotation, err := b.wrap(in.KeyWrapParams.OptsData)
		return reply("keywrapresults", "annotation", annotation, behaviour.Numbers), err
	case in.Operation == keyprovider.OpKeyUnwrap:
		options, err := b.unwrap(in.KeyUnwrapParams.Annotation)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if behaviour.Mangle != nil {
			options = behaviour.Mangle(options)
		}
		return reply("keyunwrapresults", "optsdata", options, behaviour.Numbers), nil
	}
	return nil, status.Error(codes.InvalidArgument, "unknown operation")
}

func (b *Broker) record(in keyprovider.KeyProviderKeyWrapProtocolInput, raw []byte) Behaviour {
	r := Request{Operation: string(in.Operation), JSON: append([]byte(nil), raw...)}
	if ec := in.KeyWrapParams.Ec; ec != nil {
		r.Parameters = ec.Parameters
	}
	if dc := in.KeyUnwrapParams.Dc; dc != nil {
		r.Parameters = dc.Parameters
	}
	var p packet
	if json.Unmarshal(in.KeyUnwrapParams.Annotation, &p) == nil {
		r.KID = p.KID
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, r)
	return b.behaviour
}

func (b *Broker) wrap(options []byte) ([]byte, error) {
	iv := make([]byte, b.kek.NonceSize())
	_, _ = rand.Read(iv) // never fails
	return json.Marshal(packet{
		KID: KID, WrapType: wrapType, IV: base64.StdEncoding.EncodeToString(iv),
		WrappedData: base64.StdEncoding.EncodeToString(b.kek.Seal(nil, iv, options, nil)),
	})
}

func (b *Broker) unwrap(annotation []byte) ([]byte, error) {
	var p packet
	if err := json.Unmarshal(annotation, &p); err != nil {
		return nil, errors.New("no annotation packet")
	}
	if p.KID != KID || p.WrapType != wrapType {
		return nil, fmt.Errorf("no key %q of type %q", p.KID, p.WrapType)
	}
	iv, err := base64.StdEncoding.DecodeString(p.IV)
	if err != nil || len(iv) != b.kek.NonceSize() {
		return nil, errors.New("malformed iv")
	}
	data, err := base64.StdEncoding.DecodeString(p.WrappedData)
	if err != nil {
		return nil, errors.New("malformed wrapped_data")
	}
	return b.kek.Open(nil, iv, data, nil)
}

// reply builds {"outer":{"inner": bytes}}.
func reply(outer, inner string, data []byte, numbers bool) []byte {
	var value any = data
	if numbers {
		list := make([]int, 0, len(data))
		for _, c := range data {
			list = append(list, int(c))
		}
		value = list
	}
	out, err := json.Marshal(map[string]any{outer: map[string]any{inner: value}})
	if err != nil {
		panic(err) // bytes and numbers always encode
	}
	return out
}

// WrapKey implements [pb.KeyProviderServiceServer].
func (b *Broker) WrapKey(ctx context.Context, in *pb.KeyProviderKeyWrapProtocolInput) (*pb.KeyProviderKeyWrapProtocolOutput, error) {
	return b.rpc(ctx, in)
}

// UnWrapKey implements [pb.KeyProviderServiceServer].
func (b *Broker) UnWrapKey(ctx context.Context, in *pb.KeyProviderKeyWrapProtocolInput) (*pb.KeyProviderKeyWrapProtocolOutput, error) {
	return b.rpc(ctx, in)
}

var _ pb.KeyProviderServiceServer = (*Broker)(nil)

func (b *Broker) rpc(ctx context.Context, in *pb.KeyProviderKeyWrapProtocolInput) (*pb.KeyProviderKeyWrapProtocolOutput, error) {
	out, err := b.answer(ctx, in.GetKeyProviderKeyWrapProtocolInput())
	if err != nil {
		return nil, err
	}
	return &pb.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: out}, nil
}
