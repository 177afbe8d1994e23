// Package janitor removes, from time to time, the records that nothing uses.
package janitor

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Bounds of a janitor's work.
const (
	// MinInterval and MaxInterval bound the time between two sweeps: a short TTL must
	// not keep the image store locked, and a long one is still kept to within an hour.
	MinInterval = time.Minute
	MaxInterval = time.Hour // see MinInterval
	// sweepsPerTTL is how exactly a TTL is kept: a record goes at most a quarter of it late.
	sweepsPerTTL = 4
	// jitter is the part of the interval by which each one varies, in both directions:
	// the nodes of a cluster that was started at once do not sweep at once.
	jitter = 0.1
)

// Sweeper removes records. manifestonly/cstore.Store is one.
type Sweeper interface {
	// Sweep removes the records that were not pulled for the ttl, as of now, and that
	// no container holds. It returns those it removed, also along with an error.
	Sweep(ctx context.Context, ttl time.Duration, now time.Time) ([]imageref.Record, error)
}

// Options say what to sweep, and how.
type Options struct {
	// TTL is how long an unused record stays. Needed: a node without one has no janitor.
	TTL time.Duration
	// Sweeper does the work. Needed.
	Sweeper Sweeper
	// Log is told what was removed, and what failed; nil for nobody.
	Log *slog.Logger
}

// Run sweeps until ctx is done, the first time after one interval: what CRI-O and
// kubelet do at the start of a node comes first. It returns nil then, and an error
// only for options that can never work. A sweep that fails is logged, and the next one
// tries again.
func Run(ctx context.Context, opts Options) error {
	if opts.TTL <= 0 || opts.Sweeper == nil {
		return errdefs.Newf(errdefs.InvalidArgument, "remove unused records", "a TTL and a store are needed")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	interval := Interval(opts.TTL)
	for {
		timer := time.NewTimer(vary(interval))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := sweep(ctx, opts); err != nil {
			return err
		}
	}
}

// Interval returns the mean time between two sweeps for a TTL.
func Interval(ttl time.Duration) time.Duration {
	return min(max(ttl/sweepsPerTTL, MinInterval), MaxInterval)
}

func vary(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()*2-1)*jitter*float64(d))
}

// sweep sweeps once. The error is one that no later sweep can be without.
func sweep(ctx context.Context, opts Options) error {
	removed, err := opts.Sweeper.Sweep(ctx, opts.TTL, time.Now())
	for _, r := range removed {
		names := make([]string, 0, len(r.References))
		for _, p := range r.References {
			names = append(names, p.Reference.String())
		}
		opts.Log.InfoContext(ctx, "removed an image record that nothing used", "image_id", r.ImageID().String(),
			"references", names, "ttl", opts.TTL.String())
	}
	switch {
	case err == nil, ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil
	case errdefs.Is(err, errdefs.InvalidArgument):
		return err
	default:
		opts.Log.WarnContext(ctx, "not every unused image record could be removed", "error", err)
		return nil
	}
}
