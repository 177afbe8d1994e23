package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/pkg/imageref"
)

const (
	// goalSpecMicroseconds is how long bundlegen.Spec may take for one container (issue 5).
	goalSpecMicroseconds = 200
	bundlegenRounds      = 2000
	// bundlegenDiskRounds is for what writes to the disk, bundlegenWarmUp is not counted.
	bundlegenDiskRounds = 200
	bundlegenWarmUp     = 20

	benchReference = "registry.example/team/web:1"
)

// BundlegenResult is the cost of one container's bundle, on one core and not in parallel.
type BundlegenResult struct {
	// Spec is bundlegen.Spec alone: image record and request in, runtime spec out.
	Spec BundlegenCost `json:"spec"`
	// WriteBundle is Spec and the bundle on disk.
	WriteBundle BundlegenCost `json:"spec_and_write_bundle"`
	// Store is Spec and bundles.Create and Finish: the container in containers/storage and
	// its bundle in the run directory. Its removal is not counted.
	Store       BundlegenCost `json:"spec_create_and_finish_in_containers_storage"`
	Goal        string        `json:"goal"`
	GoalReached bool          `json:"goal_reached"`
}

// BundlegenCost is what one container costs.
type BundlegenCost struct {
	Rounds      int     `json:"rounds"`
	MedianUS    float64 `json:"median_us"`
	P99US       float64 `json:"p99_us"`
	Allocations float64 `json:"allocations"`
	Bytes       float64 `json:"allocated_bytes"`
}

// runBundlegen measures bundlegen, which needs no node.
func runBundlegen(ctx context.Context, out string) (err error) {
	scratch, err := os.MkdirTemp("", "husk-bundlegen-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	fmt.Fprintln(os.Stderr, "bench: bundlegen")
	result, err := measureBundlegen(ctx, scratch)
	if err != nil {
		return fmt.Errorf("bundlegen: %w", err)
	}
	return write(out, "bundlegen", result)
}

func measureBundlegen(ctx context.Context, scratch string) (result BundlegenResult, err error) {
	where := cstore.Options{GraphRoot: filepath.Join(scratch, "graph"), RunRoot: filepath.Join(scratch, "run"), Driver: "overlay", DriverOptions: []string{"overlay.skip_mount_home=true"}}
	records, err := cstore.Open(where)
	if err != nil {
		return result, err
	}
	image, err := benchImage()
	if err != nil {
		return result, err
	}
	rec, err := records.Put(ctx, image)
	if err != nil {
		return result, err
	}
	pulled := rec.References[0]
	spec := func() (*rspec.Spec, error) { return bundlegen.Spec(rec, pulled, benchRequest(), benchSpecOptions()) }
	if result.Spec, err = costOf(bundlegenRounds, func() error { _, err := spec(); return err }, nil); err != nil {
		return result, err
	}
	dir := filepath.Join(scratch, "bundle")
	result.WriteBundle, err = costOf(bundlegenDiskRounds, func() error {
		made, err := spec()
		if err != nil {
			return err
		}
		return bundlegen.WriteBundle(dir, made)
	}, func() error { return os.RemoveAll(dir) })
	if err != nil {
		return result, err
	}
	if result.Store, err = storeCost(ctx, bundles.Options(where), rec, spec); err != nil {
		return result, err
	}
	result.judge()
	return result, nil
}

func (r *BundlegenResult) judge() {
	r.Goal = fmt.Sprintf("spec: median < %d us", goalSpecMicroseconds)
	r.GoalReached = r.Spec.MedianUS < goalSpecMicroseconds
}

// storeCost makes containers in a pod whose own container stays.
func storeCost(ctx context.Context, where bundles.Options, rec imageref.Record, spec func() (*rspec.Spec, error)) (BundlegenCost, error) {
	store, err := bundles.Open(where)
	if err != nil {
		return BundlegenCost{}, err
	}
	pod := bundles.NewID()
	infra, err := bundlegen.SandboxSpec([]string{"/pause"}, bundlegen.SpecOptions{Hostname: "bench"})
	if err != nil {
		return BundlegenCost{}, err
	}
	handler := bundles.Runtime{Name: "husk", Path: "/usr/local/bin/containerd-shim-husk-v2"}
	_, err = store.Create(ctx, bundles.Container{
		ID: pod, Name: "bench-infra", Sandbox: true, Pod: bundles.Pod{ID: pod, Name: "bench", Hostname: "bench"}, Runtime: handler, Args: []string{"/pause"},
	}, infra)
	if err != nil {
		return BundlegenCost{}, err
	}
	var id string
	return costOf(bundlegenDiskRounds, func() error {
		made, err := spec()
		if err != nil {
			return err
		}
		c, err := store.Create(ctx, bundles.Container{
			ID: bundles.NewID(), Name: "bench-web", Pod: bundles.Pod{ID: pod, Name: "bench"}, Runtime: handler, Args: made.Process.Args,
			Image: bundles.Image{
				RecordID: rec.StorageID, ImageID: rec.ImageID(), Ref: rec.References[0].Pinned().String(), UserImage: benchReference,
			},
		}, made)
		if err != nil {
			return err
		}
		id = c.ID
		_, err = store.Finish(ctx, id, nil)
		return err
	}, func() error { return store.Remove(ctx, id) })
}

// costOf measures call; after, which may be nil, makes room for the next one and is not
// counted.
func costOf(rounds int, call, after func() error) (BundlegenCost, error) {
	times := make([]float64, 0, rounds)
	var allocations, bytes uint64
	var before, behind runtime.MemStats
	for round := range bundlegenWarmUp + rounds {
		if round >= bundlegenWarmUp {
			runtime.ReadMemStats(&before)
		}
		start := time.Now()
		err := call()
		took := time.Since(start)
		if err != nil {
			return BundlegenCost{}, err
		}
		if round >= bundlegenWarmUp {
			runtime.ReadMemStats(&behind)
			allocations += behind.Mallocs - before.Mallocs
			bytes += behind.TotalAlloc - before.TotalAlloc
			times = append(times, float64(took.Nanoseconds())/1000)
		}
		if after != nil {
			if err := after(); err != nil {
				return BundlegenCost{}, err
			}
		}
	}
	slices.Sort(times)
	return BundlegenCost{
		Rounds: rounds, MedianUS: median(times), P99US: times[rounds*99/100],
		Allocations: float64(allocations) / float64(rounds), Bytes: float64(bytes) / float64(rounds),
	}, nil
}
