package taskclient

import (
	"context"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// maxText bounds what is repeated of a shim's words, in bytes. They end up on a terminal
// and in a record.
const maxText = 1 << 10

func errClosed() error {
	return errdefs.Newf(errdefs.Canceled, "speak to the shim", "the connection was closed here")
}

// explain makes an error of what a call failed with: the end of ctx, what the shim said,
// with the kind of its code, or that it did not.
func explain(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		return errdefs.New(errdefs.KindOf(cause), op, cause)
	}
	var own *errdefs.Error
	if errors.As(err, &own) {
		return errdefs.New(own.Kind(), op, err)
	}
	if isGone(err) {
		return errdefs.New(errdefs.Unavailable, op, err)
	}
	s, ok := status.FromError(err)
	if !ok {
		return errdefs.New(errdefs.Internal, op, err) // what it answers is no answer
	}
	kind := kindOf(s)
	text := s.Message()
	if word := sentinel(kind); word != "" {
		text = strings.TrimPrefix(strings.TrimPrefix(text, word), ": ")
	}
	return errdefs.New(kind, op, errors.New(line(text, maxText)))
}

// kindOf returns the kind of what a shim says.
func kindOf(s *status.Status) errdefs.Kind {
	switch s.Code() {
	case codes.Unknown: // by the word that kubelet goes by too
		for _, k := range []errdefs.Kind{errdefs.RegistryUnavailable, errdefs.PolicyRefused} {
			if strings.HasPrefix(s.Message(), sentinel(k)) {
				return k
			}
		}
		return errdefs.Internal
	case codes.AlreadyExists:
		return errdefs.InUse
	}
	for _, k := range errdefs.Kinds() { // those of a code stand in the table by how general they are
		if k.Code() == s.Code() {
			return k
		}
	}
	return errdefs.Internal
}

// sentinel is the word with which kubelet wants errors of the kind to begin; "" for most.
func sentinel(k errdefs.Kind) string {
	return strings.TrimSuffix(errdefs.New(k, "", nil).GRPCStatus().Message(), ": ")
}

// line makes text one printable line of at most limit bytes.
func line(text string, limit int) string {
	text = strings.TrimSpace(text)
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
