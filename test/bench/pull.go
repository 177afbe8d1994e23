package main

import (
	"context"
	"slices"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

// The image of the pull benchmark: about 200 MB in 5 layers.
const (
	pullLayers     = 5
	pullLayerBytes = 40 << 20
	pullRounds     = 5
)

// PullResult compares a pull through Husk with stock CRI-O's of the same plain
// image, alternating, each starting without the image.
type PullResult struct {
	ImageBytes  int64   `json:"image_bytes"`
	Layers      int     `json:"layers"`
	Husk        PullRun `json:"husk"`
	StockCRIO   PullRun `json:"stock_crio"`
	TimeRatio   float64 `json:"time_ratio"`  // stock / husk, medians
	BytesRatio  float64 `json:"bytes_ratio"` // stock / husk
	GoalTime    string  `json:"goal_time"`
	GoalBytes   string  `json:"goal_bytes"`
	GoalReached bool    `json:"goal_reached"`
}

// PullRun is one side: every round's wall time, and what the last asked the registry for.
type PullRun struct {
	Milliseconds []float64 `json:"milliseconds"`
	MedianMS     float64   `json:"median_ms"`
	Requests     int       `json:"requests"`
	Bytes        int64     `json:"bytes"`
}

func measurePull(ctx context.Context, r *rig.Rig) (any, error) {
	spec := images.Spec{Config: imgspec.ImageConfig{Cmd: []string{"/none"}}}
	for range pullLayers {
		spec.Layers = append(spec.Layers, images.Layer{Random: pullLayerBytes})
	}
	ref, summary, err := r.Push(ctx, "bench/pull", spec)
	if err != nil {
		return nil, err
	}
	result := PullResult{
		ImageBytes: summary.Instances[0].Bytes, Layers: len(summary.Instances[0].Layers),
		GoalTime: "husk under 1/40 of stock", GoalBytes: "husk under 64 KiB",
	}
	cri, err := dial(r.Node.FrontSocket)
	if err != nil {
		return nil, err
	}
	defer cri.close()
	for range pullRounds {
		if err := pullOnce(ctx, r, cri, ref, "husk", &result.Husk); err != nil {
			return nil, err
		}
		if err := pullOnce(ctx, r, cri, ref, "", &result.StockCRIO); err != nil {
			return nil, err
		}
	}
	result.Husk.MedianMS = median(result.Husk.Milliseconds)
	result.StockCRIO.MedianMS = median(result.StockCRIO.Milliseconds)
	result.TimeRatio = result.StockCRIO.MedianMS / result.Husk.MedianMS
	result.BytesRatio = float64(result.StockCRIO.Bytes) / float64(result.Husk.Bytes)
	result.GoalReached = result.TimeRatio > 40 && result.Husk.Bytes < 64<<10
	return result, nil
}

// pullOnce pulls for one handler and removes the image again. Without a handler
// the pull goes the same way, through the front, and is CRI-O's.
func pullOnce(ctx context.Context, r *rig.Rig, cri *client, ref, handler string, run *PullRun) error {
	since, err := r.LogEnd(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cri.pull(ctx, ref, handler); err != nil {
		return err
	}
	run.Milliseconds = append(run.Milliseconds, float64(time.Since(start).Microseconds())/1000)
	requests, err := r.Requests(ctx, since)
	if err != nil {
		return err
	}
	run.Requests, run.Bytes = len(requests), 0
	for _, q := range requests {
		run.Bytes += q.Bytes
	}
	return cri.remove(ctx, ref, handler)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
