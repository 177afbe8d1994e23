package manifestonly

import (
	"context"
	"net/http/httptrace"
	"sync/atomic"
)

// meter counts what one pull costs. Requests are counted where net/http sends
// them, so that those which a source makes of its own accord (ping, token, a
// retry) are not forgotten.
type meter struct {
	requests atomic.Int64
	bytes    atomic.Int64
}

// attach returns a context whose HTTP requests are counted.
func (m *meter) attach(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { m.requests.Add(1) },
	})
}

func (m *meter) read(n int) { m.bytes.Add(int64(n)) }

func (m *meter) stats() Stats {
	return Stats{Requests: int(m.requests.Load()), Bytes: m.bytes.Load()}
}
