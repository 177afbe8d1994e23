// Command bench measures Husk against its peer, stock CRI-O, in the same run on
// the same machine, and writes the results as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/husk-cri/husk/test/internal/rig"
)

// benchTimeout bounds the whole run.
const benchTimeout = 60 * time.Minute

func main() { rig.Main("bench", benchTimeout, run) }

// options are what the command line says.
type options struct {
	rig       rig.Options
	out, only string
	layers    layersOptions
	starts    podStartOptions
	runs      runOptions
}

func (o *options) flags() *flag.FlagSet {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	o.rig.Flags(flags)
	flags.StringVar(&o.out, "out", "build/bench", "write results into `directory`")
	flags.StringVar(&o.only, "only", "", "run this `benchmark` alone")
	o.layers.tmpfs = true
	flags.IntVar(&o.layers.scale, "layers-scale", 1, "divide the images of the layer engines by `N`")
	flags.IntVar(&o.layers.rounds, "layers-rounds", 3, "pull each of them `N` times")
	flags.StringVar(&o.layers.only, "layers-only", "", "pull only the image of this `shape`")
	flags.IntVar(&o.starts.scale, "podstart-scale", 1, "divide the images of the pod starts by `N`")
	flags.IntVar(&o.starts.rounds, "podstart-rounds", 7, "start each of the pods `N` times")
	flags.IntVar(&o.runs.scale, "run-scale", 1, "divide the images of husk run by `N`")
	flags.IntVar(&o.runs.rounds, "run-rounds", 7, "run each of them `N` times")
	return flags
}

func run(ctx context.Context, args []string) error {
	if done, err := runLayersChild(ctx, os.Stdout); done || err != nil {
		return err
	}
	var opts options
	flags := opts.flags()
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, b := range []struct {
		name string
		run  func() error
	}{
		{"layers", func() error { return runLayers(ctx, opts.layers, opts.out) }},
		{"bundlegen", func() error { return runBundlegen(ctx, opts.out) }},
	} {
		if opts.only == "" || opts.only == b.name {
			if err := b.run(); err != nil || opts.only != "" {
				return err
			}
		}
	}
	return runOnNode(ctx, opts)
}

// runOnNode runs the benchmarks that need a node.
func runOnNode(ctx context.Context, opts options) (err error) {
	r, err := rig.Start(ctx, opts.rig)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(context.WithoutCancel(ctx))) }()
	if err := r.StartHusk(ctx); err != nil {
		return err
	}
	for _, b := range []struct {
		name    string
		measure func(context.Context, *rig.Rig) (any, error)
	}{
		{"memory", measureMemory},
		{"pull", measurePull},
		{"requests", measureRequests},
		{"podstart", func(ctx context.Context, r *rig.Rig) (any, error) { return measurePodStart(ctx, r, opts.starts) }},
		{"run", func(ctx context.Context, r *rig.Rig) (any, error) { return measureRun(ctx, r, opts.rig.Bin, opts.runs) }},
		{"burst", measureBurst},
		{"front", measureFront},
		{"scale", func(ctx context.Context, r *rig.Rig) (any, error) { return measureScale(ctx, r, opts.rig) }},
	} {
		if opts.only != "" && opts.only != b.name {
			continue
		}
		fmt.Fprintln(os.Stderr, "bench:", b.name)
		result, err := b.measure(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if err := write(opts.out, b.name, result); err != nil {
			return err
		}
	}
	return nil
}

// runLayers compares the layer engines, which need no node.
func runLayers(ctx context.Context, opts layersOptions, out string) (err error) {
	if opts.scratch, err = os.MkdirTemp("", "husk-layers-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(opts.scratch)) }()
	fmt.Fprintln(os.Stderr, "bench: layers")
	result, err := measureLayers(ctx, opts)
	if err != nil {
		return fmt.Errorf("layers: %w", err)
	}
	return write(out, "layers", result)
}

// write writes a result as JSON, to a file of its own and to standard output.
func write(out, name string, result any) error {
	data, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if err := os.WriteFile(filepath.Join(out, name+".json"), data, 0o644); err != nil {
		return err
	}
	_, err = os.Stdout.Write(data)
	return err
}
