package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/containers/image/v5/docker"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestLook(t *testing.T) {
	t.Parallel()
	now := time.Now()
	limit := 10 * time.Second
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for title, c := range map[string]struct {
		watch *watch
		heap  uint64
		want  string // "" when the step may go on
		kind  errdefs.Kind
	}{
		"fresh":              {watch: &watch{active: true}},
		"just in time":       {watch: &watch{active: true, mark: ago(limit)}},
		"stuck":              {&watch{active: true, mark: ago(limit + 1)}, 0, "no progress for 10s", errdefs.RegistryUnavailable},
		"a drop in time":     {&watch{active: true, mark: ago(limit + 1), total: minProgress - 1}, 0, "no progress for 10s", errdefs.RegistryUnavailable},
		"enough in time":     {watch: &watch{active: true, mark: ago(limit + 1), total: minProgress}},
		"counted before":     {&watch{active: true, mark: ago(limit + 1), total: minProgress, markTotal: 1}, 0, "no progress", errdefs.RegistryUnavailable},
		"between requests":   {watch: &watch{mark: ago(limit + 1)}},
		"nobody can say":     {watch: &watch{active: true, opaque: true, mark: ago(limit + 1)}},
		"busy for ever":      {&watch{active: true, start: ago(maxStepTime + 1)}, 0, "it took longer than 5m0s", errdefs.RegistryUnavailable},
		"waiting for ever":   {&watch{start: ago(maxStepTime + 1)}, 0, "it took longer than 5m0s", errdefs.RegistryUnavailable},
		"as much as allowed": {watch: &watch{active: true, total: maxStepBytes}},
		"a bomb":             {&watch{active: true, total: maxInnocent + 1}, 1<<30 + maxHeapGrowth + 1, "of memory", errdefs.TooLarge},
		"another's bomb":     {watch: &watch{active: true, total: maxInnocent}, heap: 1<<30 + maxHeapGrowth + 1},
		"as big as allowed":  {watch: &watch{active: true, total: maxInnocent + 1}, heap: 1<<30 + maxHeapGrowth},
		"too much":           {&watch{active: true, total: maxStepBytes + 1}, 0, "sent more than 67108864 bytes", errdefs.TooLarge},
	} {
		g := NewWithT(t)
		w := c.watch
		w.limit, w.heap = limit, 1<<30
		if w.start.IsZero() {
			w.start = now
		}
		if w.mark.IsZero() {
			w.mark = now
		}
		why := w.look(now, c.heap)
		if c.want == "" {
			g.Expect(why).To(BeNil(), title)
			continue
		}
		g.Expect(why).NotTo(BeNil(), title)
		g.Expect(why.kind).To(Equal(c.kind), title)
		g.Expect(why.Error()).To(ContainSubstring(c.want), title)
	}
}

func TestTransient(t *testing.T) {
	t.Parallel()
	wrap := func(err error) error {
		return fmt.Errorf("ping: %w", &url.Error{Op: "Get", URL: "https://r.test/v2/", Err: err})
	}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{docker.UnexpectedHTTPStatusError{StatusCode: 500}, true},
		{docker.UnexpectedHTTPStatusError{StatusCode: 503}, true},
		{docker.UnexpectedHTTPStatusError{StatusCode: 404}, false},
		{docker.ErrTooManyRequests, false},
		{docker.ErrUnauthorizedForCredentials{Err: errors.New("no")}, false},
		{wrap(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), true},
		{wrap(&net.OpError{Op: "write", Err: syscall.EPIPE}), true},
		{wrap(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), false},
		{wrap(io.EOF), true},
		{wrap(io.ErrUnexpectedEOF), true},
		{wrap(&net.OpError{Op: "dial", Err: &net.DNSError{IsTemporary: true}}), true},
		{wrap(&net.OpError{Op: "dial", Err: &net.DNSError{IsTemporary: true, IsNotFound: true}}), false},
		{wrap(&net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}), false},
		{wrap(context.DeadlineExceeded), false},
		{&cut{errdefs.RegistryUnavailable, "no progress"}, false},
		{errors.New("x509: certificate signed by unknown authority"), false},
	} {
		NewWithT(t).Expect(transient(c.err)).To(Equal(c.want), "%v", c.err)
	}
}

func TestJitter(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	seen := map[time.Duration]bool{}
	for range 100 {
		d := jitter(time.Second)
		g.Expect(d).To(And(BeNumerically(">=", time.Second/2), BeNumerically("<=", time.Second)))
		seen[d] = true
	}
	g.Expect(len(seen)).To(BeNumerically(">", 10), "nodes do not come back all at once")
}
