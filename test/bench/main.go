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

func run(ctx context.Context, args []string) (err error) {
	if done, err := runLayersChild(ctx, os.Stdout); done || err != nil {
		return err
	}
	var opts rig.Options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	opts.Flags(flags)
	out := flags.String("out", "build/bench", "write results into `directory`")
	only := flags.String("only", "", "run this `benchmark` alone")
	layers := layersOptions{tmpfs: true}
	flags.IntVar(&layers.scale, "layers-scale", 1, "divide the images of the layer engines by `N`")
	flags.IntVar(&layers.rounds, "layers-rounds", 3, "pull each of them `N` times")
	flags.StringVar(&layers.only, "layers-only", "", "pull only the image of this `shape`")
	var starts podStartOptions
	flags.IntVar(&starts.scale, "podstart-scale", 1, "divide the images of the pod starts by `N`")
	flags.IntVar(&starts.rounds, "podstart-rounds", 7, "start each of the pods `N` times")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *only == "" || *only == "layers" {
		if err := runLayers(ctx, layers, *out); err != nil || *only != "" {
			return err
		}
	}
	r, err := rig.Start(ctx, opts)
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
		{"podstart", func(ctx context.Context, r *rig.Rig) (any, error) { return measurePodStart(ctx, r, starts) }},
		{"burst", measureBurst},
		{"front", measureFront},
		{"scale", func(ctx context.Context, r *rig.Rig) (any, error) { return measureScale(ctx, r, opts) }},
	} {
		if *only != "" && *only != b.name {
			continue
		}
		fmt.Fprintln(os.Stderr, "bench:", b.name)
		result, err := b.measure(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if err := write(*out, b.name, result); err != nil {
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
