package logging

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// maxDepth bounds how deep groups are followed, against a LogValuer that
	// answers with itself inside a group.
	maxDepth = 16
	hidden   = "REDACTED"
)

// secretKey reports whether an attribute of this name is a secret whatever it
// looks like. Husk logs none; this is for a line that somebody adds in a hurry.
func secretKey(key string) bool {
	name := strings.NewReplacer("_", "", "-", "", ".", "").Replace(strings.ToLower(key))
	switch name {
	case "auth", "authorization", "authconfig", "cookie":
		return true
	}
	for _, part := range []string{"password", "passwd", "passphrase", "secret", "token", "credential", "privatekey"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

func redactAttrs(attrs []slog.Attr, depth int) []slog.Attr {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = redactAttr(a, depth)
	}
	return clean
}

// redactAttr returns a with no credential in its value.
func redactAttr(a slog.Attr, depth int) slog.Attr {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindBool, slog.KindDuration, slog.KindFloat64, slog.KindInt64, slog.KindTime, slog.KindUint64:
		return slog.Attr{Key: a.Key, Value: v}
	case slog.KindGroup:
		if depth >= maxDepth {
			return slog.String(a.Key, hidden)
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(redactAttrs(v.Group(), depth+1)...)}
	}
	if a.Equal(slog.Attr{}) { // handlers leave the zero attribute out
		return a
	}
	if secretKey(a.Key) {
		return slog.String(a.Key, hidden)
	}
	return slog.String(a.Key, errdefs.Redact(text(v)))
}

// text returns v as it would be printed. A method that panics is not worth the
// daemon; fmt turns that into text.
func text(v slog.Value) string {
	if v.Kind() == slog.KindString {
		return v.String()
	}
	switch value := v.Any().(type) {
	case nil:
		return "<nil>"
	case error, fmt.Stringer:
		return fmt.Sprint(value)
	case *slog.Source:
		return fmt.Sprintf("%s:%d", value.File, value.Line)
	default:
		// Printed as numbers, no pattern would find a secret in bytes.
		if b := reflect.ValueOf(value); b.Kind() == reflect.Slice && b.Type().Elem().Kind() == reflect.Uint8 {
			return string(b.Bytes())
		}
		return fmt.Sprintf("%+v", value)
	}
}
