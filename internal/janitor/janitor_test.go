package janitor

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

var _ Sweeper = (*cstore.Store)(nil)

// sweeps records when it was asked, and answers what it is told to.
type sweeps struct {
	at      []time.Time
	ttl     time.Duration
	removed []imageref.Record
	err     error
}

func (s *sweeps) Sweep(_ context.Context, ttl time.Duration, now time.Time) ([]imageref.Record, error) {
	s.at, s.ttl = append(s.at, now), ttl
	return s.removed, s.err
}

// run runs a janitor for so long in the bubble's own time.
func run(t *testing.T, opts Options, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return Run(ctx, opts)
}

func TestIntervals(t *testing.T) {
	t.Parallel()
	for ttl, want := range map[time.Duration]time.Duration{
		time.Second: MinInterval, 10 * time.Minute: 150 * time.Second, time.Hour: 15 * time.Minute,
		4 * time.Hour: time.Hour, 1000 * time.Hour: MaxInterval,
	} {
		synctest.Test(t, func(t *testing.T) {
			g := NewWithT(t)
			g.Expect(Interval(ttl)).To(Equal(want))
			s, start := &sweeps{}, time.Now()
			g.Expect(run(t, Options{TTL: ttl, Sweeper: s}, 100*want)).To(Succeed())
			g.Expect(len(s.at)).To(BeNumerically("~", 100, 12))
			g.Expect(s.ttl).To(Equal(ttl))
			gaps := map[time.Duration]bool{}
			for _, at := range s.at {
				g.Expect(at.Sub(start)).To(BeNumerically("~", want, float64(want)*jitter+1))
				gaps[at.Sub(start)] = true
				start = at
			}
			g.Expect(len(gaps)).To(BeNumerically(">", 10), "they vary")
		})
	}
}

func TestGoesOnAfterAFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewWithT(t)
		var out bytes.Buffer
		img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1"})
		s := &sweeps{removed: []imageref.Record{img.Record()}, err: errors.New("one of them is stuck")}
		g.Expect(run(t, Options{TTL: time.Hour, Sweeper: s, Log: slog.New(slog.NewTextHandler(&out, nil))}, time.Hour)).To(Succeed())
		g.Expect(len(s.at)).To(BeNumerically(">", 2))
		g.Expect(out.String()).To(And(ContainSubstring("registry.test/app:v1"), ContainSubstring(img.Record().ImageID().String()), ContainSubstring("one of them is stuck")))
	})
}

func TestWhatCanNeverWorkIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewWithT(t)
		for _, opts := range []Options{{}, {TTL: time.Hour}, {Sweeper: &sweeps{}}, {TTL: -1, Sweeper: &sweeps{}}} {
			g.Expect(errdefs.KindOf(run(t, opts, time.Hour))).To(Equal(errdefs.InvalidArgument))
		}
		s := &sweeps{err: errdefs.Newf(errdefs.InvalidArgument, "sweep", "too short")}
		g.Expect(errdefs.KindOf(run(t, Options{TTL: time.Second, Sweeper: s}, time.Hour))).To(Equal(errdefs.InvalidArgument))
		g.Expect(s.at).To(HaveLen(1))
	})
}

// The end of the daemon is no failure of a sweep.
func TestEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewWithT(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var out bytes.Buffer
		s := &sweeps{err: ctx.Err()}
		opts := Options{TTL: time.Hour, Sweeper: s, Log: slog.New(slog.NewTextHandler(&out, nil))}
		g.Expect(Run(ctx, opts)).To(Succeed())
		g.Expect(sweep(ctx, opts)).To(Succeed())
		g.Expect(out.String()).To(BeEmpty())
	})
}

// With a real store: what is unused goes by itself, what was pulled again stays.
func TestStore(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s, err := cstore.Open(cstore.Options{GraphRoot: t.TempDir(), RunRoot: t.TempDir(), Driver: "vfs"})
	g.Expect(err).NotTo(HaveOccurred())
	for name, age := range map[string]time.Duration{"old": 2 * time.Hour, "fresh": time.Minute} {
		_, err := s.Put(t.Context(), storetest.Make(t, storetest.Spec{
			Reference: "registry.test/" + name + ":v1", Salt: name, PulledAt: time.Now().UTC().Add(-age),
		}))
		g.Expect(err).NotTo(HaveOccurred())
	}
	g.Expect(sweep(t.Context(), Options{TTL: time.Hour, Sweeper: s, Log: slog.New(slog.DiscardHandler)})).To(Succeed())
	records, err := s.List(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(records).To(HaveLen(1))
	g.Expect(records[0].References[0].Reference.String()).To(Equal("registry.test/fresh:v1"))
}
