// Command bundlediff makes the same containers twice: stock CRI-O from a full pull of an
// image and a CRI request, bundlegen from the image's config, the same request and its
// unpacked layer. It compares the two runtime specs field by field, and what both did to
// the root filesystem. A difference that [listed] does not list fails, and so does a line
// of that table for which there is no difference any more.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/husk-cri/husk/test/internal/rig"
)

const (
	// timeout bounds the whole run.
	timeout = 3 * time.Minute
	// parallel is how many containers are made at once: CRI-O and runc wait for the disk
	// and for each other as much as they compute.
	parallel = 4
)

func main() { rig.Main("bundlediff", timeout, run) }

func run(ctx context.Context, args []string) error {
	var opts rig.Options
	flags := flag.NewFlagSet("bundlediff", flag.ContinueOnError)
	opts.Flags(flags)
	out := flags.String("out", "", "write the verdict as JSON to this `file`")
	logs := flags.String("logs", "", "copy the node's logs into this `directory`")
	keep := flags.String("keep", "", "write the specs of both into this `directory`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	list := combinations()
	if err := checkNames(list); err != nil {
		return err
	}
	results, err := onNode(ctx, opts, *logs, list)
	if err != nil {
		return err
	}
	if *keep != "" {
		if err := keepSpecs(*keep, results); err != nil {
			return err
		}
	}
	return report(judge(results, listed()), *out)
}

// onNode makes every container on a node of its own.
func onNode(ctx context.Context, opts rig.Options, logs string, list []combination) (results []result, err error) {
	r, err := rig.Start(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if logs != "" {
			err = errors.Join(err, os.CopyFS(logs, os.DirFS(filepath.Join(r.Dir, "log"))))
		}
		err = errors.Join(err, r.Close(context.WithoutCancel(ctx)))
	}()
	pushed, err := pushAll(ctx, r.Node.Registry.Address, list)
	if err != nil {
		return nil, err
	}
	node, err := dial(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	if err := node.runPod(ctx); err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	defer func() { err = errors.Join(err, node.removePod(context.WithoutCancel(ctx))) }()
	results = make([]result, len(list))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, c := range list {
		group.Go(func() (err error) {
			if results[i], err = both(ctx, node, pushed[c.Image.key()], c); err != nil {
				err = fmt.Errorf("%s: %w", c.name(), err)
			}
			return err
		})
	}
	return results, group.Wait()
}

// both makes one container on both sides. The error is of the test itself: that a side
// refuses is a result.
func both(ctx context.Context, node *node, image pushed, c combination) (result, error) {
	stock, id, err := node.create(ctx, image, c)
	if err != nil {
		return result{}, err
	}
	husk, err := generate(image, c, node.given(id))
	if err != nil {
		return result{}, err
	}
	return result{combination: c, stock: stock, husk: husk}, nil
}

// checkNames refuses two combinations of one name: the table names them.
func checkNames(list []combination) error {
	seen := map[string]bool{}
	for _, c := range list {
		if seen[c.name()] {
			return fmt.Errorf("two combinations %s", c.name())
		}
		seen[c.name()] = true
	}
	return nil
}

func keepSpecs(dir string, results []result) error {
	for i, r := range results {
		for side, s := range map[string]side{"stock": r.stock, "husk": r.husk} {
			data, err := json.MarshalIndent(map[string]any{"case": r.name(), "refused": s.refused, "spec": s.spec, "rootfs": s.rootfs}, "", "  ")
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d-%s.json", i, side)), data, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// report prints what is wrong, then the counts, and fails when anything is wrong.
func report(v verdict, out string) error {
	for _, p := range v.Problems {
		fmt.Println("FAIL", p)
	}
	slices.SortFunc(v.Listed, func(a, b listedCount) int { return cmp.Compare(b.Occurrences, a.Occurrences) })
	for _, l := range v.Listed {
		fmt.Printf("listed %5d times in %3d fields: %s\n", l.Occurrences, l.Fields, l.Why)
	}
	fmt.Printf("%d combinations (%d containers, %d refused), %d fields compared, %d differences, %d of them listed, in %d lines of the table; %d changes tried, %d seen\n",
		v.Combinations, v.Made, v.Combinations-v.Made, v.Compared, v.Differences, v.Differences-v.Unlisted, len(v.Listed), v.Tried, v.Seen)
	if out != "" {
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(data, '\n'), 0o600); err != nil {
			return err
		}
	}
	if len(v.Problems) > 0 {
		return fmt.Errorf("%d problems", len(v.Problems))
	}
	return nil
}
