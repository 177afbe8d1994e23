package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/metrics"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// pods are Sandboxes made of a function.
type pods func(ctx context.Context) ([]sandboxes.Sandbox, error)

func (p pods) List(ctx context.Context) ([]sandboxes.Sandbox, error) { return p(ctx) }

func noPods(context.Context) ([]sandboxes.Sandbox, error) { return nil, nil }

func withPods(p pods) *metrics.Metrics {
	o := options()
	o.Sandboxes = p
	return metrics.New(o)
}

func TestSandboxes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := withPods(func(context.Context) ([]sandboxes.Sandbox, error) {
		return []sandboxes.Sandbox{
			{ID: "a", Store: sandboxes.Store{Limit: 1000, Used: 10}, Images: make([]sandboxes.Image, 2)},
			{ID: "b", Store: sandboxes.Store{Limit: 500, Used: 5}, Images: make([]sandboxes.Image, 1)},
			{ID: "old", Err: errdefs.New(errdefs.Unsupported, "ask", fmt.Errorf("pod old: %w", sandboxes.ErrOldShim))},
			{ID: "hung", Err: errdefs.Newf(errdefs.Unavailable, "ask", "no answer")},
		}, nil
	})
	for name, want := range map[string]float64{
		"husk_sandboxes": 4, "husk_sandboxes_unreachable": 1, "husk_sandbox_images": 3,
		"husk_sandbox_store_bytes": 15, "husk_sandbox_store_limit_bytes": 1500, "husk_scrape_errors_total": 0,
	} {
		g.Expect(samples(t, m, name)).To(Equal(map[string]float64{"": want}), name)
	}
}

func TestSandboxesThatCannotBeListed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	families := gather(t, withPods(func(context.Context) ([]sandboxes.Sandbox, error) { return nil, errors.New("too many") }))
	g.Expect(families).NotTo(HaveKey("husk_sandboxes"), "a zero would be a lie")
	g.Expect(families).To(HaveKey("husk_records"), "the rest is there")
	g.Expect(families["husk_scrape_errors_total"].GetMetric()[0].GetCounter().GetValue()).To(Equal(1.0), "in the same scrape")
}

// TestScrapesOfHungPods: one asks at a time, and each comes back.
func TestScrapesOfHungPods(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	asked := make(chan time.Time, 16)
	m := withPods(func(ctx context.Context) ([]sandboxes.Sandbox, error) {
		deadline, _ := ctx.Deadline()
		asked <- deadline
		<-ctx.Done()
		return []sandboxes.Sandbox{{ID: "hung", Err: ctx.Err()}}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // in which all of them come to ask
	defer cancel()
	done := make(chan error, 3)
	for range 3 {
		go func() { _, err := m.Gather(ctx); done <- err }()
	}
	for range 3 {
		g.Eventually(done, "10s").Should(Receive(BeNil()))
	}
	g.Expect(len(asked)).To(Equal(1))
	_, err := m.Gather(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	<-asked
	g.Expect(time.Until(<-asked)).To(BeNumerically("<=", 0), "a scrape without a deadline has one")
}

func TestLayers(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	done := m.LayersStarted()
	g.Expect(samples(t, m, "husk_layer_pulls_in_progress")).To(Equal(map[string]float64{"": 1}))
	done()
	m.LayersPulled("kata", metrics.OK, time.Second, 100)
	m.LayersPulled("kata", "too-large", time.Second, 11)
	m.LayersPulled("made up", "made up", time.Second, -5)
	g.Expect(samples(t, m, "husk_layer_pulls_in_progress")).To(Equal(map[string]float64{"": 0}))
	g.Expect(samples(t, m, "husk_layer_pulls_total")).To(Equal(map[string]float64{"kata,ok": 1, "kata,too-large": 1, "other,internal": 1}))
	g.Expect(samples(t, m, "husk_layer_pull_seconds")).To(Equal(map[string]float64{"kata": 2, "other": 1}))
	g.Expect(samples(t, m, "husk_layer_pulled_bytes_total")).To(Equal(map[string]float64{"": 111}))
}
