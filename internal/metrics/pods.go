package metrics

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// podsTimeout bounds how long a scrape asks pods: Prometheus gives up after 10 seconds,
// and one hung shim must not cost it every other number.
const podsTimeout = 4 * time.Second

// podTotals is what is counted of the pods.
type podTotals struct {
	pods, silent, images int
	used, limit          int64
}

func (m *Metrics) countSandboxes(ctx context.Context, now prometheus.Registerer) error {
	if m.pods == nil {
		return nil
	}
	t, err := m.tally(ctx)
	if err != nil {
		return err
	}
	now.MustRegister(
		gauge("husk_sandboxes", "Pods of this node whose shims pull layers.", float64(t.pods)),
		gauge("husk_sandboxes_unreachable", "Pods whose shim did not answer in time, or not with what can be.", float64(t.silent)),
		gauge("husk_sandbox_images", "Images in the stores of pods.", float64(t.images)),
		gauge("husk_sandbox_store_bytes", "Bytes in the stores of pods.", float64(t.used)),
		gauge("husk_sandbox_store_limit_bytes", "Bytes that the stores of pods may hold.", float64(t.limit)),
	)
	return nil
}

// tally counts the pods. Scrapes that come faster than pods answer share no answer, but
// only one of them asks at a time.
func (m *Metrics) tally(ctx context.Context) (podTotals, error) {
	ctx, cancel := context.WithTimeout(ctx, podsTimeout)
	defer cancel()
	select {
	case m.looking <- struct{}{}:
		defer func() { <-m.looking }()
	case <-ctx.Done():
		return podTotals{}, errdefs.Newf(errdefs.Unavailable, "count sandboxes", "an earlier scrape still asks them")
	}
	list, err := m.pods.List(ctx)
	if err != nil {
		return podTotals{}, err
	}
	var t podTotals
	for _, s := range list {
		t.pods++
		if s.Err != nil && !errors.Is(s.Err, sandboxes.ErrOldShim) { // an upgrade is no alarm
			t.silent++
		}
		t.images += len(s.Images)
		t.used += s.Store.Used
		t.limit += s.Store.Limit
	}
	return t, nil
}
