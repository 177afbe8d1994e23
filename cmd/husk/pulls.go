package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/husk-cri/husk/internal/sandboxes"
)

// watchStep is how often --watch looks again. Each look asks every pod.
const watchStep = time.Second

func pullsCommand(pods sandboxes.Client) *cli.Command {
	return &cli.Command{
		Name:      "pulls",
		Usage:     "list the pulls of layers that are under way in the pods of this node",
		UsageText: "husk pulls [--watch] [--format text|json|TEMPLATE]",
		Description: "Both pulls that kubelet waits for and those of a container that is being created. " +
			"Layers that a pod has already are not counted. Pods whose shim does not answer are named on standard error.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "look again every second, until interrupted"},
			formatFlag(formatText),
		},
		Before: noArgs,
		Action: func(c *cli.Context) error {
			if err := needsRoot(c); err != nil {
				return err
			}
			if c.Bool("watch") {
				return watch(c.Context, c.App.Writer, func(w io.Writer) error { return pulls(c, w, pods) })
			}
			return pulls(c, c.App.Writer, pods)
		},
	}
}

// pulls prints the pulls under way.
func pulls(c *cli.Context, w io.Writer, pods sandboxes.Client) error {
	list, err := pods.Pulling(c.Context)
	if err != nil {
		return err
	}
	views := []sandboxPullView{}
	for _, s := range list {
		for _, p := range s.Pulls {
			views = append(views, sandboxPullView{
				podView: podViewOf(s), Reference: p.Reference, Layers: p.Progress.Layers, LayersDone: p.Progress.LayersDone,
				Bytes: p.Progress.Bytes, BytesDone: p.Progress.BytesDone, StartedAt: p.StartedAt,
			})
		}
	}
	if err := showOn(c, w, views, func(w io.Writer) error { return printPulls(w, views) }); err != nil {
		return err
	}
	return silent(c, list)
}

func printPulls(w io.Writer, views []sandboxPullView) error {
	var rows [][]string
	for _, v := range views {
		done := "-" // before the manifest is known
		if v.Bytes > 0 {
			done = fmt.Sprintf("%d%%", 100*v.BytesDone/v.Bytes)
		}
		rows = append(rows, []string{
			v.name(), short(v.Sandbox), v.Reference, fmt.Sprintf("%d/%d", v.LayersDone, v.Layers),
			humanBytes(v.BytesDone) + "/" + humanBytes(v.Bytes), done, age(v.StartedAt),
		})
	}
	return printTable(w, []string{"POD", "SANDBOX", "REFERENCE", "LAYERS", "BYTES", "DONE", "AGE"}, rows)
}

// watch prints again and again until ctx ends: on a terminal in its place, elsewhere one
// after another.
func watch(ctx context.Context, w io.Writer, print func(io.Writer) error) error {
	clear := ""
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		clear = "\x1b[H\x1b[2J"
	}
	tick := time.NewTicker(watchStep)
	defer tick.Stop()
	for {
		var out bytes.Buffer
		err := print(&out)
		if ctx.Err() != nil {
			return nil // whoever interrupts it has seen enough
		}
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, clear+out.String()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
