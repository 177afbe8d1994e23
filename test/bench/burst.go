package main

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/husk-cri/husk/test/internal/rig"
)

const burstImages = 64

// BurstResult is 64 images pulled at once, as when a node is drained onto this one.
// Stock CRI-O pulls the same images, which share their one layer; it goes second, so
// whatever the registry keeps warm is in its favour.
type BurstResult struct {
	Images int      `json:"images"`
	Husk   BurstRun `json:"husk"`
	Stock  BurstRun `json:"stock_crio"`
	Ratio  float64  `json:"wall_time_ratio"` // stock / husk
}

// BurstRun is one side, in milliseconds.
type BurstRun struct {
	WallMS   float64 `json:"wall_ms"`
	P50MS    float64 `json:"pull_p50_ms"`
	MaxMS    float64 `json:"pull_max_ms"`
	Requests int     `json:"requests"`
}

func measureBurst(ctx context.Context, r *rig.Rig) (any, error) {
	refs, err := pushMany(ctx, r, "bench/burst", burstImages)
	if err != nil {
		return nil, err
	}
	result := BurstResult{Images: burstImages}
	if result.Husk, err = burst(ctx, r, refs, r.Node.FrontSocket, "husk"); err != nil {
		return nil, err
	}
	if result.Stock, err = burst(ctx, r, refs, r.Node.CRIO.Socket, ""); err != nil {
		return nil, err
	}
	result.Ratio = result.Stock.WallMS / result.Husk.WallMS
	return result, nil
}

func burst(ctx context.Context, r *rig.Rig, refs []string, socket, handler string) (run BurstRun, err error) {
	c, err := dial(socket)
	if err != nil {
		return run, err
	}
	defer c.close()
	since, err := r.LogEnd(ctx)
	if err != nil {
		return run, err
	}
	times := make([]float64, len(refs))
	group, pulls := errgroup.WithContext(ctx)
	start := time.Now()
	for i, ref := range refs {
		group.Go(func() error {
			err := c.pull(pulls, ref, handler)
			times[i] = float64(time.Since(start).Microseconds()) / 1000
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return run, err
	}
	run.WallMS = float64(time.Since(start).Microseconds()) / 1000
	run.P50MS, run.MaxMS = median(times), slices.Max(times)
	requests, err := r.Requests(ctx, since)
	run.Requests = len(requests)
	return run, err
}
