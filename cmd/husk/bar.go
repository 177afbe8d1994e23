package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull"
)

// How the progress of a pull is shown.
const (
	progressAuto = "auto"
	progressJSON = "json"
	progressNone = "none"
)

// timeWidth is the room that the line needs for the time at its end.
const timeWidth = len(" (100000.0s)")

// progressFlag is --progress of the commands that pull layers.
func progressFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "progress", Value: progressAuto,
		Usage: "show on standard error how far it is as `KIND`: auto (a bar, on a terminal), json (lines of JSON, the log's too) or none",
		Action: func(_ *cli.Context, kind string) error {
			if kind != progressAuto && kind != progressJSON && kind != progressNone {
				return errdefs.Newf(errdefs.InvalidArgument, "--progress", "%q is none of auto, json, none", kind)
			}
			return nil
		},
	}
}

// layerProgress shows a pull of layers as --progress says. done ends it, with a summary
// unless there is an error.
func layerProgress(c *cli.Context, what string) (tell func(layerpull.Progress), done func(summary string, err error)) {
	quiet := func(string, error) {}
	switch c.String("progress") {
	case progressJSON:
		lines := json.NewEncoder(c.App.ErrWriter)
		// Who does not read any more is told nothing.
		return func(p layerpull.Progress) { _ = lines.Encode(p) }, quiet
	case progressNone:
		return nil, quiet
	}
	f, ok := c.App.ErrWriter.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, quiet
	}
	return drawBar(f, what, func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 0
		}
		return width
	})
}

// drawBar draws a bar on a terminal of the given width, 0 for one that is not known.
func drawBar(w io.Writer, what string, width func() int) (tell func(layerpull.Progress), done func(string, error)) {
	start := time.Now()
	var last atomic.Pointer[layerpull.Progress]
	done = drawLive(w, what, func() string { return barLine(what, last.Load(), time.Since(start), width()) }, start)
	return func(p layerpull.Progress) { last.Store(&p) }, done
}

// barLine is one line of at most width columns: the bytes as a bar and as numbers, and
// the layers. Before the layers are known it is what is going on alone.
func barLine(what string, p *layerpull.Progress, took time.Duration, width int) string {
	const bar, defaultWidth = 20, 80
	line := oneLine(what)
	if p != nil {
		share := 1.0
		if p.Bytes > 0 {
			share = min(float64(p.BytesDone)/float64(p.Bytes), 1)
		}
		full := int(share * bar)
		facts := fmt.Sprintf(" [%s%s] %3.0f%% %s/%s, layers %d/%d", strings.Repeat("#", full), strings.Repeat("-", bar-full),
			share*100, humanBytes(p.BytesDone), humanBytes(p.Bytes), p.LayersDone, p.Layers)
		if seconds := took.Seconds(); seconds >= 1 {
			facts += fmt.Sprintf(", %s/s", humanBytes(int64(float64(p.BytesDone)/seconds)))
		}
		if width <= 0 {
			width = defaultWidth
		}
		// The name gives way: its end says more than its beginning.
		if room := width - timeWidth - len(facts); len(line) > room {
			line = line[len(line)-max(room, 0):]
		}
		line += facts
	}
	if width > timeWidth && len(line) > width-timeWidth { // a line that wraps is not cleared
		line = line[:width-timeWidth]
	}
	return line
}
