// Command compat performs the same pulls through stock CRI-O and through Husk, on
// one node with one configuration, against registries that record who asked for
// what, and compares outcome, identity and requests.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/test/internal/rig"
)

// compatTimeout bounds the whole run.
const compatTimeout = 5 * time.Minute

func main() { rig.Main("compat", compatTimeout, run) }

func run(ctx context.Context, args []string) error {
	var opts rig.Options
	flags := flag.NewFlagSet("compat", flag.ContinueOnError)
	opts.Flags(flags)
	out := flags.String("out", "", "write the comparisons as JSON to this `file`")
	logs := flags.String("logs", "", "copy the node's logs into this `directory`")
	only := flags.String("only", "", "run the cases of this `topic` alone")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return fakeregistry.Run(ctx, func(tb fakeregistry.TB) (err error) {
		n, err := rig.Start(ctx, opts)
		if err != nil {
			return err
		}
		defer func() {
			if *logs != "" {
				err = errors.Join(err, os.CopyFS(*logs, os.DirFS(n.Dir+"/log")))
			}
			err = errors.Join(err, n.Close(context.WithoutCancel(ctx)))
		}()
		w := newWorld(tb, n)
		cases := w.prepare(*only)
		if err := w.start(ctx, opts); err != nil {
			return err
		}
		results := w.compareAll(ctx, cases)
		if err := w.removePods(ctx); err != nil {
			return fmt.Errorf("remove pods: %w", err)
		}
		return report(append(results, w.leaks()), *out)
	})
}

// report prints a line per case and what differs, and fails when anything does.
func report(results []comparison, out string) error {
	failed := 0
	for _, c := range results {
		verdict := "ok  "
		if len(c.Problems) > 0 {
			verdict, failed = "FAIL", failed+1
		}
		fmt.Printf("%s %s/%s: %s; requests: stock %d, husk %d\n", verdict, c.Topic, c.Name, c.Husk.Class, len(c.Stock.Requests), len(c.Husk.Requests))
		for _, p := range c.Problems {
			fmt.Printf("       %s\n", p)
		}
		if len(c.Problems) > 0 {
			fmt.Printf("       stock: %s\n       husk:  %s\n", c.Stock.Message, c.Husk.Message)
		}
	}
	if out != "" {
		data, err := json.MarshalIndent(results, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(data, '\n'), 0o600); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d cases differ", failed, len(results))
	}
	return nil
}
