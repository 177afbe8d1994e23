package logging

import (
	"io"
	"log/slog"
	"maps"
	"slices"

	"github.com/sirupsen/logrus"
)

// RouteLogrus makes from say what it has to say through to: warnings and errors,
// redacted and in the format of the rest. What is below a warning is dropped before
// it is formatted. Call it once, before from is used by anybody.
//
// Only main can give the argument that matters, [logrus.StandardLogger]:
// containers/image and containers/storage log through the package functions of
// logrus and take no logger, so the process's one logger is the only way to them.
// It is passed in, so that nothing here knows of a global.
func RouteLogrus(from *logrus.Logger, to *slog.Logger) {
	from.SetLevel(logrus.WarnLevel)
	from.SetOutput(io.Discard)
	from.AddHook(hook{to})
}

// hook passes entries on.
type hook struct{ to *slog.Logger }

var _ logrus.Hook = hook{}

// Levels are those that [RouteLogrus] lets through.
func (hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire logs one entry. The level of the slog logger decides too.
func (h hook) Fire(e *logrus.Entry) error {
	attrs := make([]any, 0, len(e.Data)+1)
	attrs = append(attrs, slog.String("from", "logrus"))
	for _, key := range slices.Sorted(maps.Keys(e.Data)) {
		attrs = append(attrs, slog.Any(key, e.Data[key]))
	}
	level := slog.LevelError
	if e.Level == logrus.WarnLevel {
		level = slog.LevelWarn
	}
	switch {
	case e.Context != nil:
		h.to.Log(e.Context, level, e.Message, attrs...)
	case level == slog.LevelWarn:
		h.to.Warn(e.Message, attrs...)
	default:
		h.to.Error(e.Message, attrs...)
	}
	return nil
}
