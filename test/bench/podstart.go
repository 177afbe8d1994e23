package main

import (
	"context"
	"fmt"
	"os"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

// podStartOptions sizes the comparison of pod starts.
type podStartOptions struct {
	// scale divides the sizes of the images; 1 is the full run.
	scale int
	// rounds is how often each side starts each pod; the median counts.
	rounds int
}

// goalPodStart is the least stock time / Husk's time: no slower.
const goalPodStart = 1.0

// PodStartResult compares the start of a pod through Husk, whose image is encrypted,
// with stock CRI-O's, whose image is the same without encryption: from the call of
// RunPodSandbox to the first line of the container. Both sides take turns.
type PodStartResult struct {
	Rounds int            `json:"rounds"`
	Scale  int            `json:"scale"`
	Cases  []PodStartCase `json:"cases"`
	Goal   string         `json:"goal"`
	// GoalReached is whether each cold start reached it.
	GoalReached bool `json:"goal_reached"`
}

// PodStartCase is one image: cold, with nothing of it on the node, and warm, as the
// second container of a pod that has it. Ratios are stock / Husk of the medians.
type PodStartCase struct {
	Image          string       `json:"image"`
	Layers         int          `json:"layers"`
	PlainBytes     int64        `json:"plain_stored_bytes"`
	EncryptedBytes int64        `json:"encrypted_stored_bytes"`
	Cold           PodStartPair `json:"cold"`
	Warm           PodStartPair `json:"warm_second_container"`
	GoalReached    bool         `json:"goal_reached"`
}

// PodStartPair is both sides of one kind of start.
type PodStartPair struct {
	Husk      PodStartRun `json:"husk_encrypted"`
	StockCRIO PodStartRun `json:"stock_crio_plain"`
	Ratio     float64     `json:"time_ratio"`
}

// PodStartRun is one side, in milliseconds: every round, the median, and the median
// of each step. A warm start has no sandbox step.
type PodStartRun struct {
	Milliseconds []float64          `json:"milliseconds"`
	MedianMS     float64            `json:"median_ms"`
	StepsMS      map[string]float64 `json:"steps_median_ms"`

	steps map[string][]float64
}

// podShapes are the images: busybox below these layers.
func podShapes(scale int) []layerShape {
	small := func(n int) int { return max(n/scale, 1) }
	return []layerShape{
		{name: "busybox alone"},
		{"busybox and 8 x 16 MB", 8, small(16), 1_000_000, 100},
		{"busybox and 1 x 128 MB", 1, small(128), 1_000_000, 100},
		{"busybox and 20,000 small files", 1, small(20_000), 1000, 100},
	}
}

func measurePodStart(ctx context.Context, r *rig.Rig, opts podStartOptions) (any, error) {
	husk, err := newPodStarter(r, r.Node.FrontSocket, "husk")
	if err != nil {
		return nil, err
	}
	defer husk.cri.close()
	stock, err := newPodStarter(r, r.Node.CRIO.Socket, "")
	if err != nil {
		return nil, err
	}
	defer stock.cri.close()
	result := PodStartResult{
		Rounds: opts.rounds, Scale: opts.scale, GoalReached: true,
		Goal: fmt.Sprintf("cold: stock/husk >= %g", goalPodStart),
	}
	for n, shape := range podShapes(opts.scale) {
		c, err := podStartCase(ctx, r, fmt.Sprintf("bench/podstart-%d", n), shape, opts.rounds, husk, stock)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", shape.name, err)
		}
		fmt.Fprintf(os.Stderr, "bench: podstart: %s: husk %.0f ms, stock %.0f ms; warm %.0f and %.0f ms\n", c.Image,
			c.Cold.Husk.MedianMS, c.Cold.StockCRIO.MedianMS, c.Warm.Husk.MedianMS, c.Warm.StockCRIO.MedianMS)
		result.GoalReached = result.GoalReached && c.GoalReached
		result.Cases = append(result.Cases, c)
	}
	return result, nil
}

// podStartCase pushes one image in both forms and starts pods from it, the sides in
// turn, each first as often as the other.
func podStartCase(ctx context.Context, r *rig.Rig, repo string, shape layerShape, rounds int, husk, stock *podStarter) (PodStartCase, error) {
	c := PodStartCase{Image: shape.name}
	spec := images.Spec{Busybox: images.DefaultBusybox, Config: imgspec.ImageConfig{Cmd: []string{"/none"}}, Layers: shape.layersOf()}
	plain, summary, err := r.Push(ctx, repo+"-plain", spec)
	if err != nil {
		return c, err
	}
	c.Layers, c.PlainBytes = len(summary.Instances[0].Layers), summary.Instances[0].Bytes
	key, err := os.ReadFile(r.PublicKey())
	if err != nil {
		return c, err
	}
	spec.Encrypt = &images.Encryption{PublicKeys: [][]byte{key}}
	encrypted, summary, err := r.Push(ctx, repo+"-encrypted", spec)
	if err != nil {
		return c, err
	}
	c.EncryptedBytes = summary.Instances[0].Bytes
	if summary.Instances[0].Encrypted != c.Layers {
		return c, fmt.Errorf("%d of %d layers are encrypted", summary.Instances[0].Encrypted, c.Layers)
	}
	for round := range rounds {
		sides := []func() error{
			func() error { return husk.round(ctx, encrypted, &c.Cold.Husk, &c.Warm.Husk) },
			func() error { return stock.round(ctx, plain, &c.Cold.StockCRIO, &c.Warm.StockCRIO) },
		}
		if round%2 == 1 {
			sides[0], sides[1] = sides[1], sides[0]
		}
		for _, side := range sides {
			unix.Sync() // nobody pays for what the other wrote
			if err := side(); err != nil {
				return c, err
			}
		}
	}
	c.Cold.judge()
	c.Warm.judge()
	c.GoalReached = c.Cold.Ratio >= goalPodStart
	return c, nil
}

func (p *PodStartPair) judge() {
	p.Husk.judge()
	p.StockCRIO.judge()
	p.Ratio = p.StockCRIO.MedianMS / p.Husk.MedianMS
}

func (r *PodStartRun) judge() {
	r.MedianMS, r.StepsMS = median(r.Milliseconds), map[string]float64{}
	for step, times := range r.steps {
		r.StepsMS[step] = median(times)
	}
}

// stopwatch measures the steps of one start.
type stopwatch struct {
	run         *PodStartRun
	begin, last time.Time
}

func (r *PodStartRun) start() *stopwatch {
	if r.steps == nil {
		r.steps = map[string][]float64{}
	}
	now := time.Now()
	return &stopwatch{r, now, now}
}

func (w *stopwatch) lap(step string) {
	now := time.Now()
	w.run.steps[step] = append(w.run.steps[step], milliseconds(now.Sub(w.last)))
	w.last = now
}

func (w *stopwatch) stop() {
	w.run.Milliseconds = append(w.run.Milliseconds, milliseconds(w.last.Sub(w.begin)))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
