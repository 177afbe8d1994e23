// Command demo runs Husk's main job for real and prints the evidence: an image
// that stock CRI-O cannot start runs through Husk, and the registry's own access
// log, CRI-O's answers and the disk show that the host read no layer.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/husk-cri/husk/test/internal/rig"
)

// demoTimeout bounds the whole run, for machines where something hangs.
const demoTimeout = 5 * time.Minute

func main() { rig.Main("demo", demoTimeout, run) }

func run(ctx context.Context, args []string) (err error) {
	var opts rig.Options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	opts.Flags(flags)
	evidence := flags.String("evidence", "", "write the evidence to `FILE`")
	kind := flags.String("image", "encrypted", "encrypted, plain or index (multi-arch and encrypted)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it starts CRI-O, network namespaces and containers")
	}
	out := newPrinter(os.Stdout)
	out.step("starting a registry and stock CRI-O")
	r, err := rig.Start(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		// Also after an interrupt: nothing is left behind.
		err = errors.Join(err, r.Close(context.WithoutCancel(ctx)))
	}()
	e, err := collect(ctx, r, *kind, out)
	if err != nil {
		return err
	}
	if *evidence != "" {
		if err := os.MkdirAll(filepath.Dir(*evidence), 0o755); err != nil {
			return err
		}
		if err := e.write(*evidence); err != nil {
			return err
		}
	}
	out.table(e)
	if wrong := e.check(); len(wrong) > 0 {
		return fmt.Errorf("the evidence is wrong: %w", errors.Join(wrong...))
	}
	return nil
}
