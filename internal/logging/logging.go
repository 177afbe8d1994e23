// Package logging makes the log of Husk: structured, with the trace it belongs
// to, and with one last check that no credential is in it.
package logging

import (
	"context"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The formats of [New].
const (
	FormatText = "text"
	FormatJSON = "json"
)

// New returns a logger that writes to w in the given format, "text" (also "") or
// "json"; any other is errdefs.InvalidArgument. Give a [slog.LevelVar] as level to
// change it while the logger is in use.
func New(w io.Writer, level slog.Leveler, format string) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case FormatJSON:
		return slog.New(NewHandler(slog.NewJSONHandler(w, options))), nil
	case FormatText, "":
		return slog.New(NewHandler(slog.NewTextHandler(w, options))), nil
	}
	return nil, errdefs.Newf(errdefs.InvalidArgument, "log_format", "%q is neither text nor json", format)
}

// SetLevel sets level to "debug", "info" (also ""), "warn" or "error", at once for
// every logger made with it. Any other name is errdefs.InvalidArgument and changes
// nothing.
func SetLevel(level *slog.LevelVar, name string) error {
	switch name {
	case "debug":
		level.Set(slog.LevelDebug)
	case "info", "":
		level.Set(slog.LevelInfo)
	case "warn":
		level.Set(slog.LevelWarn)
	case "error":
		level.Set(slog.LevelError)
	default:
		return errdefs.Newf(errdefs.InvalidArgument, "log_level", "%q is none of debug, info, warn, error", name)
	}
	return nil
}

// handler redacts what it passes on, and adds the span of the context.
type handler struct {
	next slog.Handler
	// groups are those of WithGroup, outermost first. They are not given to next,
	// because the trace IDs must stand outside of them.
	groups []group
}

// group is an open group with the attributes that were added while it was innermost.
type group struct {
	name  string
	attrs []slog.Attr
}

var _ slog.Handler = (*handler)(nil)

// NewHandler returns a handler that redacts the message and every attribute of a
// record, adds trace_id and span_id of the span that its context carries, and
// passes it on to next. Values that are neither plain nor text, such as structs,
// are written as text, since nothing else can be checked.
func NewHandler(next slog.Handler) slog.Handler { return &handler{next: next} }

func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, errdefs.Redact(r.Message), r.PC)
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		clean.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, redactAttr(a, 0))
		return true
	})
	for i := len(h.groups) - 1; i >= 0; i-- {
		g := h.groups[i]
		all := append(append(make([]slog.Attr, 0, len(g.attrs)+len(attrs)), g.attrs...), attrs...)
		attrs = []slog.Attr{{Key: g.name, Value: slog.GroupValue(all...)}}
	}
	clean.AddAttrs(attrs...)
	return h.next.Handle(ctx, clean)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	clean := redactAttrs(attrs, 0)
	n := len(h.groups)
	if n == 0 {
		return &handler{next: h.next.WithAttrs(clean)}
	}
	groups := append(make([]group, 0, n), h.groups...)
	inner := groups[n-1]
	groups[n-1].attrs = append(append(make([]slog.Attr, 0, len(inner.attrs)+len(clean)), inner.attrs...), clean...)
	return &handler{next: h.next, groups: groups}
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &handler{next: h.next, groups: append(append(make([]group, 0, len(h.groups)+1), h.groups...), group{name: name})}
}
