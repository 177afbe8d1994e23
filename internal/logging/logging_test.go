package logging_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"testing/slogtest"

	. "github.com/onsi/gomega"
	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/trace"

	"github.com/husk-cri/husk/internal/logging"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

const secret = "hunter2hunter2"

// basic is what stands in an Authorization header.
func basic() string { return base64.StdEncoding.EncodeToString([]byte("user:" + secret)) }

type stringer struct{ s string }

func (s stringer) String() string { return s.s }

type valuer struct{ v slog.Value }

func (v valuer) LogValue() slog.Value { return v.v }

// endless answers with itself, one group deeper.
type endless struct{}

func (endless) LogValue() slog.Value { return slog.GroupValue(slog.Any("again", endless{})) }

type request struct{ URL, Header string }

func newLogger(t *testing.T, format string) (*slog.Logger, *bytes.Buffer) {
	t.Helper()
	out := new(bytes.Buffer)
	log, err := logging.New(out, slog.LevelDebug, format)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return log, out
}

// TestNothingLeaks logs a credential in every place a line has.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	leak := "https://user:" + secret + "@reg.io/v2/?token=" + secret
	header := "Authorization: Basic " + basic()
	parsed, err := url.Parse(leak)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	for name, write := range map[string]func(*slog.Logger){
		"message":             func(l *slog.Logger) { l.Info("get " + leak) },
		"message, header":     func(l *slog.Logger) { l.Info(header) },
		"string":              func(l *slog.Logger) { l.Info("x", "url", leak) },
		"bearer":              func(l *slog.Logger) { l.Info("x", "h", "Bearer "+secret) },
		"error":               func(l *slog.Logger) { l.Info("x", "error", errors.New("get "+leak+": EOF")) },
		"wrapped error":       func(l *slog.Logger) { l.Info("x", "error", fmt.Errorf("a: %w", errors.New(leak))) },
		"joined errors":       func(l *slog.Logger) { l.Info("x", "error", errors.Join(errors.New("a"), errors.New(header))) },
		"url.Error":           func(l *slog.Logger) { l.Info("x", "error", &url.Error{Op: "Get", URL: leak, Err: errors.New("EOF")}) },
		"stringer":            func(l *slog.Logger) { l.Info("x", "s", stringer{leak}) },
		"url.URL":             func(l *slog.Logger) { l.Info("x", "s", parsed) },
		"struct":              func(l *slog.Logger) { l.Info("x", "s", request{leak, header}) },
		"pointer to a struct": func(l *slog.Logger) { l.Info("x", "s", &request{leak, header}) },
		"map":                 func(l *slog.Logger) { l.Info("x", "m", map[string]string{"url": leak}) },
		"slice":               func(l *slog.Logger) { l.Info("x", "m", []string{"a", leak}) },
		"slice of errors":     func(l *slog.Logger) { l.Info("x", "m", []error{errors.New(leak)}) },
		"bytes":               func(l *slog.Logger) { l.Info("x", "b", []byte(leak)) },
		"json":                func(l *slog.Logger) { l.Info("x", "b", json.RawMessage(`{"h":"Bearer `+secret+`"}`)) },
		"group":               func(l *slog.Logger) { l.Info("x", slog.Group("g", "a", 1, "url", leak)) },
		"group in a group":    func(l *slog.Logger) { l.Info("x", slog.Group("g", slog.Group("h", "url", leak))) },
		"valuer":              func(l *slog.Logger) { l.Info("x", "v", valuer{slog.StringValue(leak)}) },
		"valuer of a group":   func(l *slog.Logger) { l.Info("x", "v", valuer{slog.GroupValue(slog.Any("e", errors.New(leak)))}) },
		"With":                func(l *slog.Logger) { l.With("url", leak).Info("x") },
		"With error":          func(l *slog.Logger) { l.With("error", errors.New(leak)).Info("x") },
		"WithGroup":           func(l *slog.Logger) { l.WithGroup("g").Info("x", "url", leak) },
		"With in WithGroup":   func(l *slog.Logger) { l.WithGroup("g").With("url", leak).WithGroup("h").Info("x", "a", header) },
		"key password":        func(l *slog.Logger) { l.Info("x", "Password", secret) },
		"key identity token":  func(l *slog.Logger) { l.Info("x", "identity_token", secret) },
		"key auth":            func(l *slog.Logger) { l.Info("x", "auth", basic()) },
		"key in With":         func(l *slog.Logger) { l.With("client.secret", []byte(secret)).Info("x") },
		"credentials":         func(l *slog.Logger) { l.Info("x", "c", registryauth.Credentials{Username: "user", Password: secret}) },
		"in a struct": func(l *slog.Logger) {
			l.Info("x", "r", manifestonly.Request{Name: leak, Credentials: registryauth.Credentials{RegistryToken: secret}})
		},
		"errdefs": func(l *slog.Logger) {
			l.Info("x", "error", errdefs.New(errdefs.Unauthorized, "pull "+leak, errors.New(header)))
		},
		"user:pass in a message": func(l *slog.Logger) { l.Warn("redirected", "to", "http://"+secret+"@host/x#"+secret) },
	} {
		for _, format := range []string{logging.FormatText, logging.FormatJSON} {
			g := NewWithT(t)
			log, out := newLogger(t, format)
			write(log)
			g.Expect(out.String()).NotTo(ContainSubstring(secret), "%s, %s", name, format)
			g.Expect(out.String()).NotTo(ContainSubstring(basic()), "%s, %s", name, format)
			g.Expect(out.String()).To(ContainSubstring("REDACTED"), "%s, %s", name, format)
		}
	}
}

func TestPlainValuesStay(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	log, out := newLogger(t, logging.FormatJSON)
	log.Info("pulled", "requests", 4, "ok", true, "share", 0.5, "image", "reg.io/app:1", "error", error(nil), "author", "me", "end", endless{})
	var line map[string]any
	g.Expect(json.Unmarshal(out.Bytes(), &line)).To(Succeed())
	g.Expect(line).To(And(HaveKeyWithValue("requests", 4.0), HaveKeyWithValue("ok", true), HaveKeyWithValue("share", 0.5),
		HaveKeyWithValue("image", "reg.io/app:1"), HaveKeyWithValue("error", "<nil>"), HaveKeyWithValue("author", "me")))
}

// TestHandler is slog's own conformance suite.
func TestHandler(t *testing.T) {
	t.Parallel()
	var out *bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		out = new(bytes.Buffer)
		return logging.NewHandler(slog.NewJSONHandler(out, nil))
	}, func(t *testing.T) map[string]any {
		line := map[string]any{}
		NewWithT(t).Expect(json.Unmarshal(out.Bytes(), &line)).To(Succeed())
		return line
	})
}

func TestTraceIDs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{7: 2}})
	ctx := trace.ContextWithSpanContext(t.Context(), span)
	log, out := newLogger(t, logging.FormatJSON)
	log.WithGroup("g").InfoContext(ctx, "x", "a", 1)
	g.Expect(out.String()).To(ContainSubstring(
		`"trace_id":"00000000000000000000000000000001","span_id":"0000000000000002","g":{"a":1}`), "outside of the group")
	out.Reset()
	log.InfoContext(t.Context(), "x")
	g.Expect(out.String()).NotTo(ContainSubstring("trace_id"))
}

func TestLoggersDoNotShareAttributes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	log, out := newLogger(t, logging.FormatJSON)
	parent := log.WithGroup("g").With("a", 1)
	first, second := parent.With("b", 2), parent.With("c", 3)
	first.Info("x")
	second.Info("x")
	g.Expect(out.String()).To(And(ContainSubstring(`"g":{"a":1,"b":2}}`), ContainSubstring(`"g":{"a":1,"c":3}}`)))
}

func TestLevel(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	level, out := new(slog.LevelVar), new(bytes.Buffer)
	log, err := logging.New(out, level, "")
	g.Expect(err).NotTo(HaveOccurred())
	derived := log.With("a", 1) // made before the change, and changed with it
	derived.Debug("one")
	g.Expect(logging.SetLevel(level, "debug")).To(Succeed())
	derived.Debug("two")
	g.Expect(errdefs.Is(logging.SetLevel(level, "loud"), errdefs.InvalidArgument)).To(BeTrue())
	derived.Debug("three")
	g.Expect(logging.SetLevel(level, "error")).To(Succeed())
	derived.Warn("four")
	derived.Error("five")
	g.Expect(out.String()).To(And(Not(ContainSubstring("one")), ContainSubstring("two"), ContainSubstring("three"),
		Not(ContainSubstring("four")), ContainSubstring("five")))
	for name, want := range map[string]slog.Level{"": slog.LevelInfo, "info": slog.LevelInfo, "warn": slog.LevelWarn} {
		g.Expect(logging.SetLevel(level, name)).To(Succeed())
		g.Expect(level.Level()).To(Equal(want))
	}
	_, err = logging.New(out, level, "xml")
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue())
}

func TestRouteLogrus(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	to, out := newLogger(t, logging.FormatJSON)
	from, direct := logrus.New(), new(bytes.Buffer)
	from.SetOutput(direct)
	from.SetLevel(logrus.TraceLevel)
	logging.RouteLogrus(from, to)
	g.Expect(from.IsLevelEnabled(logrus.InfoLevel)).To(BeFalse(), "what nobody reads is not even formatted")
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{7: 2}})

	from.Debug("Using credentials " + secret)
	from.Info("an info " + secret)
	g.Expect(out.String()).To(BeEmpty())
	from.WithField("url", "https://u:"+secret+"@reg.io/").WithError(errors.New("Basic "+basic())).Warnf("mirror %d failed", 1)
	from.WithContext(trace.ContextWithSpanContext(context.WithoutCancel(t.Context()), span)).Error("with a span")
	from.Error("no token in http://x/?k=" + secret)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	g.Expect(lines).To(HaveLen(3))
	g.Expect(lines[0]).To(And(ContainSubstring(`"level":"WARN","msg":"mirror 1 failed","from":"logrus","error":"Basic REDACTED"`), ContainSubstring("REDACTED@reg.io")))
	g.Expect(lines[1]).To(And(ContainSubstring(`"level":"ERROR"`), ContainSubstring(`"span_id":"0000000000000002"`)))
	g.Expect(lines[2]).To(ContainSubstring(`"level":"ERROR"`))
	g.Expect(out.String()).NotTo(ContainSubstring(secret))
	g.Expect(direct.String()).To(BeEmpty(), "nothing beside the log")
}
