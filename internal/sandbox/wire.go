package sandbox

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// maxRequest bounds what a child reads: paths, a name, and the few small blobs a
	// caller may send along. More is a parent gone wrong.
	maxRequest = 16 << 20
	// maxAnswer bounds what a parent reads where the job does not say: a child gone
	// wrong must not fill its parent's memory.
	maxAnswer = 16 << 20
	// maxMessage bounds the text of a child's error, which goes to logs and events.
	maxMessage = 32 << 10
	// maxDiagnostics bounds what is kept of a child's standard error, so that a
	// child that logs without end fills neither memory nor an error message.
	maxDiagnostics = 4 << 10
	ellipsis       = "..."
)

// request is what a child reads from its standard input.
type request[Work any] struct {
	ResolvConf string   `json:"resolvConf,omitempty"`
	Variables  []string `json:"variables,omitempty"`
	// Reports says that there is a pipe for reports.
	Reports bool `json:"reports,omitempty"`
	Work    Work `json:"work"`
}

// answer is what a child writes to its standard output: a result, or an error with
// the name of its kind.
type answer struct {
	Result  json.RawMessage `json:"result,omitempty"`
	Kind    string          `json:"kind,omitempty"`
	Message string          `json:"message,omitempty"`
}

// limitedBuffer holds up to max bytes and fails on the next.
type limitedBuffer struct {
	max int
	buf bytes.Buffer
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > b.max {
		return 0, errdefs.Newf(errdefs.TooLarge, "read the answer of a sandbox child", "more than %d bytes", b.max)
	}
	return b.buf.Write(p)
}

// decode reads the answer into result, or returns the error that the child had.
func (b *limitedBuffer) decode(result any) error {
	const op = "read the answer of a sandbox child"
	var a answer
	if err := json.Unmarshal(b.buf.Bytes(), &a); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	switch {
	case len(a.Message) > maxMessage:
		return errdefs.Newf(errdefs.Internal, op, "an error of %d bytes, the limit is %d", len(a.Message), maxMessage)
	case a.Kind != "":
		return errdefs.New(errdefs.ParseKind(a.Kind), a.Message, nil)
	case len(a.Result) == 0:
		return errdefs.New(errdefs.Internal, "a sandbox child answered neither a result nor an error", nil)
	}
	if err := json.Unmarshal(a.Result, result); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

// tail keeps the last max bytes written to it.
type tail struct {
	max int
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.buf)) }
