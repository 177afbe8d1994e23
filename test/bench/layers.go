package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
)

// layersOptions sizes the comparison of layer engines.
type layersOptions struct {
	// scale divides the sizes and counts of the images; 1 is the full run.
	scale int
	// rounds is how often each engine pulls each image; the median counts.
	rounds int
	// only, unless "", is the name of the one image to measure.
	only string
	// scratch is where images and stores go.
	scratch string
	// tmpfs gives each pull a fresh tmpfs for its store, as a pod's sandbox has,
	// instead of a directory of scratch.
	tmpfs bool
}

// The goals of the comparison, see issue 4.
const (
	goalPeerManyLayers = 2.0
	goalPeer           = 1.0
	goalFloor          = 0.8
	// goalFloorManyLayers is "near twice" goalFloor: what two cores make of many layers.
	goalFloorManyLayers = 1.5
	goalRSSKiB          = 64 << 10
)

// LayersResult compares pkg/layerpull with its peers on the same images.
type LayersResult struct {
	CPUs  int          `json:"cpus"`
	Scale int          `json:"scale"`
	Tmpfs bool         `json:"tmpfs"`
	Cases []LayersCase `json:"cases"`
	// GoalsReached is whether each case reached its goals.
	GoalsReached bool `json:"goals_reached"`
}

// LayersCase is one image. Seconds are medians.
type LayersCase struct {
	Image         string `json:"image"`
	Form          string `json:"form"`
	Layers        int    `json:"layers"`
	StoredBytes   int64  `json:"stored_bytes"`
	UnpackedBytes int64  `json:"unpacked_bytes"`
	// Runs are the engines': layerpull; copy (containers/image copy.Image into an
	// overlay store); skopeo (to an OCI layout, nothing unpacked); floor (decrypt,
	// inflate and untar in one thread, from memory).
	Runs map[string]LayersRun `json:"runs"`
	// PeerRatio is copy's time to layerpull's, FloorRatio the floor's.
	PeerRatio  float64 `json:"copy_to_layerpull"`
	FloorRatio float64 `json:"floor_to_layerpull"`
	Goals      string  `json:"goals"`
	Reached    bool    `json:"goals_reached"`
}

// LayersRun is one engine's work on one image.
type LayersRun struct {
	Seconds float64 `json:"seconds"`
	// CPUSeconds is of the process and its children, a median too.
	CPUSeconds float64 `json:"cpu_seconds"`
	// MBPerSecond is of unpacked bytes.
	MBPerSecond float64 `json:"unpacked_mb_per_second"`
	// PeakRSSKiB is VmHWM of the process, without its children: the most of all rounds.
	PeakRSSKiB int64 `json:"peak_rss_kib"`
}

// measureLayers needs root for the stores, and no node.
func measureLayers(ctx context.Context, opts layersOptions) (any, error) {
	kit, err := newLayersKit(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer kit.close()
	result := LayersResult{CPUs: runtime.NumCPU(), Scale: opts.scale, Tmpfs: opts.tmpfs, GoalsReached: true}
	for _, shape := range layerShapes(opts.scale) {
		if opts.only != "" && opts.only != shape.name {
			continue
		}
		for _, form := range layerForms() {
			c, err := kit.measure(ctx, shape, form)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", shape.name, form.name, err)
			}
			result.GoalsReached = result.GoalsReached && c.Reached
			result.Cases = append(result.Cases, c)
		}
	}
	return result, nil
}

// measure builds one image, has every engine pull it, and forgets it again.
func (k *layersKit) measure(ctx context.Context, shape layerShape, form layerForm) (LayersCase, error) {
	job, c, err := k.build(ctx, shape, form)
	if err != nil {
		return c, err
	}
	defer func() { _ = os.RemoveAll(job.Layout) }()
	seconds, cpu := map[string][]float64{}, map[string][]float64{}
	for range k.opts.rounds {
		for _, engine := range []string{"layerpull", "copy", "skopeo", "floor"} {
			run, err := k.run(ctx, engine, job)
			if err != nil {
				return c, fmt.Errorf("%s: %w", engine, err)
			}
			seconds[engine] = append(seconds[engine], run.Seconds)
			run.PeakRSSKiB = max(run.PeakRSSKiB, c.Runs[engine].PeakRSSKiB)
			cpu[engine] = append(cpu[engine], run.CPUSeconds)
			run.Seconds, run.CPUSeconds = median(seconds[engine]), median(cpu[engine])
			run.MBPerSecond = float64(c.UnpackedBytes) / 1e6 / run.Seconds
			c.Runs[engine] = run
		}
	}
	c.judge(runtime.NumCPU())
	fmt.Fprintf(os.Stderr, "bench: layers: %s, %s: layerpull %.2fs, copy %.2fs, skopeo %.2fs, floor %.2fs; %d KiB\n", c.Image, c.Form,
		c.Runs["layerpull"].Seconds, c.Runs["copy"].Seconds, c.Runs["skopeo"].Seconds, c.Runs["floor"].Seconds, c.Runs["layerpull"].PeakRSSKiB)
	return c, nil
}

// judge compares a case with its goals.
func (c *LayersCase) judge(cpus int) {
	own := c.Runs["layerpull"]
	c.PeerRatio = c.Runs["copy"].Seconds / own.Seconds
	c.FloorRatio = c.Runs["floor"].Seconds / own.Seconds
	peer, floor := goalPeer, goalFloor
	if c.Layers > 1 {
		peer = goalPeerManyLayers
		if cpus > 1 {
			floor = goalFloorManyLayers
		}
	}
	c.Goals = fmt.Sprintf("copy/layerpull >= %g, floor/layerpull >= %g, peak RSS < %d KiB", peer, floor, goalRSSKiB)
	c.Reached = c.PeerRatio >= peer && c.FloorRatio >= floor && own.PeakRSSKiB < goalRSSKiB
}

// run has one engine pull the job's image in a process of its own, into a fresh store.
func (k *layersKit) run(ctx context.Context, engine string, job layersJob) (run LayersRun, err error) {
	job.Engine, job.Dir = engine, filepath.Join(k.opts.scratch, "store")
	if err := os.Mkdir(job.Dir, 0o700); err != nil {
		return run, err
	}
	defer func() { _ = os.RemoveAll(job.Dir) }()
	if k.opts.tmpfs {
		if err := unix.Mount("tmpfs", job.Dir, "tmpfs", 0, "mode=0700"); err != nil {
			return run, fmt.Errorf("mount tmpfs: %w", err)
		}
		// Detached: an overlay store leaves a bind mount of itself.
		defer func() { _ = unix.Unmount(job.Dir, unix.MNT_DETACH) }()
	}
	data, err := json.Marshal(job)
	if err != nil {
		return run, err
	}
	self, err := os.Executable()
	if err != nil {
		return run, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), layersChildEnv+"="+string(data))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return run, err
	}
	if err := json.Unmarshal(out, &run); err != nil {
		return run, fmt.Errorf("read what the child measured: %w", err)
	}
	run.CPUSeconds = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return run, nil
}

// timed measures work in this process.
func timed(ctx context.Context, work func(context.Context) error) (LayersRun, error) {
	start := time.Now()
	if err := work(ctx); err != nil {
		return LayersRun{}, err
	}
	run := LayersRun{Seconds: time.Since(start).Seconds()}
	var err error
	run.PeakRSSKiB, err = statusKiB("self", "VmHWM:")
	return run, err
}

// layerForm is how an image's layers are stored.
type layerForm struct {
	name        string
	compression images.Compression
	encrypted   bool
}

func layerForms() []layerForm {
	return []layerForm{
		{"gzip", images.Gzip, false},
		{"zstd", images.Zstd, false},
		{"encrypted gzip", images.Gzip, true},
	}
}

// layerShape is how an image's content is laid out.
type layerShape struct {
	name                      string
	layers, files, bytes, dir int // files of a layer, bytes of a file, files of a directory
}

func layerShapes(scale int) []layerShape {
	small := func(n int) int { return max(n/scale, 1) }
	return []layerShape{
		{"1 x 500 MB", 1, small(500), 1_000_000, 100},
		{"8 x 64 MB", 8, small(64), 1_000_000, 100},
		{"40 small", 40, small(20), 100_000, 10},
		{"50,000 small files", 1, small(50_000), 1000, 100},
	}
}
