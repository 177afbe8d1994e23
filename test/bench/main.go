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
const benchTimeout = 40 * time.Minute

func main() { rig.Main("bench", benchTimeout, run) }

func run(ctx context.Context, args []string) (err error) {
	var opts rig.Options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	opts.Flags(flags)
	out := flags.String("out", "build/bench", "write results into `directory`")
	only := flags.String("only", "", "run this `benchmark` alone")
	if err := flags.Parse(args); err != nil {
		return err
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
		data, err := json.MarshalIndent(result, "", "  ")
		if err != nil {
			return err
		}
		data = append(data, '\n')
		if err := os.WriteFile(filepath.Join(*out, b.name+".json"), data, 0o644); err != nil {
			return err
		}
		if _, err := os.Stdout.Write(data); err != nil {
			return err
		}
	}
	return nil
}
