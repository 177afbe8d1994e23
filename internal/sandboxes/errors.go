package sandboxes

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// maxText bounds what is repeated of a shim's words, in bytes. They end up in a pod's
// events and in the log.
const maxText = 1 << 10

// explain makes an error of what a call failed with. What a shim says has the kind it
// gives, or else that of its code; a connection that breaks is Unavailable. echo is what
// the shim begins with too and op says already; "" for nothing. What it repeats of the
// credentials that it was given is taken out.
func explain(op, echo string, err error, given registryauth.Credentials) error {
	var own *errdefs.Error
	if errors.As(err, &own) {
		return errdefs.New(own.Kind(), op, given.Scrub(err)) // it may be of a lie
	}
	s, ok := status.FromError(err)
	if !ok {
		if k := errdefs.KindOf(err); k != errdefs.Internal { // the end of ctx
			return errdefs.New(k, op, err)
		}
		return errdefs.Newf(errdefs.Unavailable, op, "the shim gave no answer: %w", err)
	}
	kind, said := kindOf(s)
	if kind == errdefs.Unsupported && !said {
		return errdefs.New(kind, op, ErrOldShim)
	}
	return errdefs.New(kind, op, errors.New(strings.TrimPrefix(wordsOf(s, kind, given), echo+": ")))
}

// kindOf returns the kind of a shim's error. said: the shim names it.
func kindOf(s *status.Status) (kind errdefs.Kind, said bool) {
	for _, detail := range s.Details() {
		if k, ok := detail.(*shimv1.Kind); ok {
			return errdefs.ParseKind(k.GetKind()), true
		}
	}
	if s.Code() == codes.Unknown { // by the word that kubelet goes by too
		for _, k := range []errdefs.Kind{errdefs.RegistryUnavailable, errdefs.PolicyRefused} {
			if strings.HasPrefix(s.Message(), sentinel(k)) {
				return k, false
			}
		}
		return errdefs.Internal, false
	}
	for _, k := range errdefs.Kinds() { // those of a code stand in the table by how general they are
		if k.Code() == s.Code() {
			return k, false
		}
	}
	return errdefs.Internal, false
}

// sentinel is the word with which kubelet wants errors of the kind to begin; "" for most.
func sentinel(k errdefs.Kind) string {
	return strings.TrimSuffix(errdefs.New(k, "", nil).GRPCStatus().Message(), ": ")
}

// wordsOf is a shim's message as it can be repeated, without the word that is put in
// front of it again.
func wordsOf(s *status.Status, kind errdefs.Kind, given registryauth.Credentials) string {
	text := s.Message()
	if word := sentinel(kind); word != "" {
		text = strings.TrimPrefix(strings.TrimPrefix(text, word), ": ")
	}
	// Before it is cut, perhaps in the middle of a secret.
	return line(given.Scrub(errors.New(text)).Error(), maxText)
}

// line makes text one printable line of at most limit bytes.
func line(text string, limit int) string {
	cut := len(text) > limit
	if cut {
		text = strings.ToValidUTF8(text[:limit], "")
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text)
	if cut {
		text += "..."
	}
	return text
}
