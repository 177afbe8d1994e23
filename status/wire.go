package status

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The answers that report containers and images are edited as they stand on the
// wire. What does not change is not decoded: it costs nothing, and what a newer
// CRI-O says in it, or says in bytes that are no UTF-8, reaches the client as it is.

// each calls visit for every field of an encoded message. raw is the whole field;
// value is what a length-delimited field holds, nil for other kinds.
func each(message []byte, visit func(number protowire.Number, raw, value []byte) error) error {
	for len(message) > 0 {
		number, kind, head := protowire.ConsumeTag(message)
		if head < 0 {
			return malformed(head)
		}
		body := protowire.ConsumeFieldValue(number, kind, message[head:])
		if body < 0 {
			return malformed(body)
		}
		var value []byte
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(message[head:])
		}
		if err := visit(number, message[:head+body], value); err != nil {
			return err
		}
		message = message[head+body:]
	}
	return nil
}

func malformed(code int) error {
	return errdefs.New(errdefs.Internal, "read CRI-O's answer", protowire.ParseError(code))
}

// editRepeated applies edit to every occurrence of a message field and copies all
// else as it stands. A nil result drops the occurrence. When edit changes nothing,
// message itself is returned.
func editRepeated(message []byte, field protowire.Number, edit func([]byte) ([]byte, error)) ([]byte, error) {
	edited := make([]byte, 0, len(message))
	changed := false
	err := each(message, func(number protowire.Number, raw, value []byte) error {
		if number != field || value == nil {
			edited = append(edited, raw...)
			return nil
		}
		replacement, err := edit(value)
		switch {
		case err != nil:
			return err
		case replacement == nil:
			changed = true
		case same(value, replacement):
			edited = append(edited, raw...)
		default:
			changed = true
			edited = appendBytes(edited, field, replacement)
		}
		return nil
	})
	if err != nil || !changed {
		return message, err
	}
	return edited, nil
}

// same reports whether b is a itself, not merely equal to it.
func same(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func appendBytes(message []byte, field protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(message, field, protowire.BytesType), value)
}

func appendString(message []byte, field protowire.Number, value string) []byte {
	return protowire.AppendString(protowire.AppendTag(message, field, protowire.BytesType), value)
}

// bytesField returns the last value of a string, bytes or message field, as
// decoding would; nil when there is none.
func bytesField(message []byte, field protowire.Number) []byte {
	var found []byte
	// A malformed message has no such field; judging it is not asked for here.
	_ = each(message, func(number protowire.Number, _, value []byte) error {
		if number == field {
			found = value
		}
		return nil
	})
	return found
}
