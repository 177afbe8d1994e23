package front

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// maxLogValue bounds what a log line repeats of a request, in bytes: a client may send
// an image name of megabytes.
const maxLogValue = 512

// entry is what the log says of one call: names, never the values of annotations,
// environment or credentials.
type entry struct {
	did   string // what the front has done itself; "" for a call that CRI-O has answered
	attrs []slog.Attr
}

// note adds a name to the log line.
func (e *entry) note(key, value string) {
	if value == "" {
		return
	}
	e.attrs = append(e.attrs, slog.String(key, bounded(value)))
}

// notePod adds the pod's name.
func (e *entry) notePod(config *cri.PodSandboxConfig) {
	e.note("namespace", config.GetMetadata().GetNamespace())
	e.note("pod", config.GetMetadata().GetName())
}

// noteImage adds what an image was found to be.
func (e *entry) noteImage(rec imageref.Record, pulled imageref.PulledReference) {
	e.note("image_id", rec.ImageID().String())
	e.note("pinned", pulled.Pinned().String())
	e.note("record", rec.StorageID.String())
}

func bounded(text string) string {
	if text = errdefs.Redact(text); len(text) > maxLogValue {
		return text[:maxLogValue] + "..."
	}
	return text
}

// forwarded counts and logs a call that the front has no opinion on. It allocates
// nothing unless the log is at level debug.
func (s *Server) forwarded(ctx context.Context, method string, took time.Duration, err error) {
	s.Observer.Forwarded(method, status.Code(err))
	if s.Log.Enabled(ctx, slog.LevelDebug) {
		s.Log.LogAttrs(ctx, slog.LevelDebug, "forwarded", slog.String("method", bounded(method)),
			slog.String("code", status.Code(err).String()), slog.Duration("took", took))
	}
}

// logCall writes the one line of an intercepted call: pulls and creations at level
// info, failures at level warn, all else at level debug. That what a question is about
// does not exist, or CRI-O's own answer to a question, is not worth a warning.
func (s *Server) logCall(c *call, took time.Duration, err error) {
	level, text := slog.LevelDebug, "answered"
	own := c.did != "" || errors.As(err, new(*errdefs.Error))
	switch {
	case err != nil:
		if text = "failed"; changes(c.method) || own && kindOf(err) != errdefs.NotFound {
			level = slog.LevelWarn
		}
	case c.did != "":
		level, text = slog.LevelInfo, c.did
	}
	if !s.Log.Enabled(c.ctx(), level) {
		return
	}
	attrs := append([]slog.Attr{slog.String("method", c.method)}, c.attrs...)
	if err != nil {
		attrs = append(attrs, slog.String("kind", kindOf(err).String()))
	}
	if err != nil && own {
		// What CRI-O says to a call that was its own is in CRI-O's log. A registry may
		// have put anything into it, the credentials it was sent among that.
		attrs = append(attrs, slog.String("error", bounded(status.Convert(errdefs.ToGRPC(err)).Message())))
	}
	s.Log.LogAttrs(c.ctx(), level, text, append(attrs, slog.Duration("took", took))...)
}

// changes reports whether a method changes something on the node.
func changes(method string) bool {
	switch method {
	case cri.ImageService_PullImage_FullMethodName, cri.ImageService_RemoveImage_FullMethodName,
		cri.RuntimeService_RunPodSandbox_FullMethodName, cri.RuntimeService_CreateContainer_FullMethodName,
		cri.RuntimeService_RestorePod_FullMethodName:
		return true
	}
	return false
}

// kindOf is errdefs.KindOf for errors that may be CRI-O's own, which have a code only.
func kindOf(err error) errdefs.Kind {
	if errors.As(err, new(*errdefs.Error)) {
		return errdefs.KindOf(err)
	}
	if _, ok := status.FromError(err); !ok {
		return errdefs.KindOf(err)
	}
	switch status.Code(err) {
	case codes.InvalidArgument:
		return errdefs.InvalidArgument
	case codes.NotFound:
		return errdefs.NotFound
	case codes.Unavailable:
		return errdefs.Unavailable
	case codes.Unimplemented:
		return errdefs.Unsupported
	case codes.Canceled:
		return errdefs.Canceled
	case codes.DeadlineExceeded:
		return errdefs.DeadlineExceeded
	default:
		return errdefs.Internal
	}
}
