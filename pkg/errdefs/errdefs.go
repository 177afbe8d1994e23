// Package errdefs is the one place where Husk names the ways things fail.
//
// Every error that crosses a process or an RPC boundary carries a [Kind]. The
// table in this file maps each kind to a gRPC code and, where the kubelet knows
// one, to the CRI sentinel that must stand first in the message. Errors are
// told apart by kind, never by their text.
package errdefs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Kind is a way in which an operation can fail. The zero value is Internal.
type Kind int

// The kinds of failure. Their order is not significant; their names are stable,
// because they travel between processes.
const (
	// Internal is a failure of Husk or the node that no caller can mend.
	Internal Kind = iota
	// InvalidArgument is a request that can never succeed as it stands.
	InvalidArgument
	// NotFound is an image or a record that does not exist where it was looked for.
	NotFound
	// Unauthorized is a registry that refused the credentials, or wanted some.
	Unauthorized
	// RegistryUnavailable is a registry that could not be reached or kept failing.
	RegistryUnavailable
	// PolicyRefused is an image that the signature policy does not accept.
	PolicyRefused
	// DigestMismatch is content that is not what its digest or size says.
	DigestMismatch
	// TooLarge is content over a limit that protects the node.
	TooLarge
	// NotAnImage is content that exists but is no container image (an artifact, schema 1).
	NotAnImage
	// NoPlatform is an index without an instance for this platform.
	NoPlatform
	// InUse is an image that a container still needs.
	InUse
	// KeyUnavailable is an encrypted layer for which no key was found or released.
	KeyUnavailable
	// UserUnresolvable is a user or group name that the image does not define.
	UserUnresolvable
	// Unavailable is a part of the node (CRI-O, a shim) that does not answer now.
	Unavailable
	// Unsupported is a request that is right but that this node cannot carry out.
	Unsupported
	// Canceled is an operation whose caller went away.
	Canceled
	// DeadlineExceeded is an operation that ran out of its time.
	DeadlineExceeded
)

// The sentinels that kubelet 1.34 looks for at the start of an error's text
// (k8s.io/cri-api/pkg/errors, pkg/kubelet/images/image_manager.go). They stand
// there only if the code is Unknown: for any other, kubelet's client puts "rpc
// error: code = ..." in front (k8s.io/cri-client, pullImageV1). So these two kinds
// travel as Unknown, which is what CRI-O sends too.
const (
	criRegistryUnavailable = "RegistryUnavailable"
	criSignatureFailed     = "SignatureValidationFailed"
)

type row struct {
	kind     Kind
	name     string
	code     codes.Code
	sentinel string
}

// table holds one row per kind; [Kinds] and every lookup read it.
func table() []row {
	return []row{
		{Internal, "internal", codes.Internal, ""},
		{InvalidArgument, "invalid-argument", codes.InvalidArgument, ""},
		{NotFound, "not-found", codes.NotFound, ""},
		{Unauthorized, "unauthorized", codes.Unauthenticated, ""},
		{RegistryUnavailable, "registry-unavailable", codes.Unknown, criRegistryUnavailable},
		{PolicyRefused, "policy-refused", codes.Unknown, criSignatureFailed},
		{DigestMismatch, "digest-mismatch", codes.DataLoss, ""},
		{TooLarge, "too-large", codes.ResourceExhausted, ""},
		{NotAnImage, "not-an-image", codes.InvalidArgument, ""},
		{NoPlatform, "no-platform", codes.NotFound, ""},
		{InUse, "in-use", codes.FailedPrecondition, ""},
		{KeyUnavailable, "key-unavailable", codes.PermissionDenied, ""},
		{UserUnresolvable, "user-unresolvable", codes.InvalidArgument, ""},
		{Unavailable, "unavailable", codes.Unavailable, ""},
		{Unsupported, "unsupported", codes.Unimplemented, ""},
		{Canceled, "canceled", codes.Canceled, ""},
		{DeadlineExceeded, "deadline-exceeded", codes.DeadlineExceeded, ""},
	}
}

// Kinds returns every kind, in table order.
func Kinds() []Kind {
	rows := table()
	kinds := make([]Kind, 0, len(rows))
	for _, r := range rows {
		kinds = append(kinds, r.kind)
	}
	return kinds
}

func rowOf(k Kind) row {
	for _, r := range table() {
		if r.kind == k {
			return r
		}
	}
	return table()[0]
}

// String returns the stable name of the kind, such as "not-found".
func (k Kind) String() string { return rowOf(k).name }

// Code returns the gRPC code that carries the kind.
func (k Kind) Code() codes.Code { return rowOf(k).code }

// ParseKind returns the kind with the given stable name; an unknown name, as a
// newer peer may send, is Internal.
func ParseKind(name string) Kind {
	for _, r := range table() {
		if r.name == name {
			return r.kind
		}
	}
	return Internal
}

// Error is an error with a kind. Its text is redacted: see [Redact].
type Error struct {
	kind Kind
	op   string
	err  error
}

// New returns an error of the given kind that says what was being done and,
// through err, why it failed. op should name the reference ("pull registry/app:1").
// err may be nil.
func New(kind Kind, op string, err error) *Error {
	return &Error{kind: kind, op: op, err: err}
}

// Newf is [New] with the reason given as a format. %w is honoured.
func Newf(kind Kind, op, format string, args ...any) *Error {
	return New(kind, op, fmt.Errorf(format, args...))
}

// Error returns "op: reason" with anything that looks like a credential removed.
func (e *Error) Error() string {
	if e.err == nil {
		return Redact(e.op)
	}
	return Redact(e.op + ": " + e.err.Error())
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.err }

// Kind returns the kind of e.
func (e *Error) Kind() Kind { return e.kind }

// GRPCStatus makes a gRPC or ttrpc server answer with the kind's code, and with
// the CRI sentinel first in the message where there is one.
func (e *Error) GRPCStatus() *status.Status {
	return status.New(e.kind.Code(), message(e.kind, e.Error()))
}

func message(k Kind, text string) string {
	if s := rowOf(k).sentinel; s != "" && !strings.HasPrefix(text, s) {
		return s + ": " + text
	}
	return text
}

// KindOf returns the kind of the outermost [Error] in err's chain. Errors of the
// context package are Canceled and DeadlineExceeded; anything else is Internal.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.kind
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	default:
		return Internal
	}
}

// Is reports whether err is of the given kind. A nil error is of no kind.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// ToGRPC returns err as a gRPC status error that a CRI client understands. A
// status that came from another server is passed on unchanged, so that no
// error of the backend is masked. The result has code Unknown only if the backend
// sent it, or for a kind that kubelet knows by its sentinel.
func ToGRPC(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		// The outer text may say more than the Error inside the chain.
		return status.Error(e.kind.Code(), message(e.kind, Redact(err.Error())))
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	k := KindOf(err)
	return status.Error(k.Code(), message(k, Redact(err.Error())))
}
