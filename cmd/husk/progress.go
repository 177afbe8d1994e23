package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

const (
	// progressDelay is how long a command may take before it says that it is at work:
	// most pulls of metadata are over sooner.
	progressDelay = 300 * time.Millisecond
	// progressStep is how often the line is drawn again.
	progressStep = 100 * time.Millisecond
)

// progress shows on standard error, if that is a terminal, what is going on and for
// how long. done ends it, with a summary unless there is an error.
func progress(c *cli.Context, what string) (done func(summary string, err error)) {
	if f, ok := c.App.ErrWriter.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return func(string, error) {}
	}
	return draw(c.App.ErrWriter, what, time.Now())
}

// draw draws the line on a terminal.
func draw(w io.Writer, what string, start time.Time) (done func(summary string, err error)) {
	return drawLive(w, what, func() string { return what }, start)
}

// drawLive draws a line that changes, asking for it each time.
func drawLive(w io.Writer, what string, line func() string, start time.Time) (done func(summary string, err error)) {
	const clear = "\r\x1b[K"
	stop := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		wait := time.NewTimer(progressDelay)
		defer wait.Stop()
		for {
			select {
			case <-stop:
				return
			case <-wait.C:
			}
			// A terminal that is gone is nobody's loss.
			_, _ = fmt.Fprintf(w, "%s%s (%.1fs)", clear, line(), time.Since(start).Seconds())
			wait.Reset(progressStep)
		}
	})
	return func(summary string, err error) {
		close(stop)
		drawing.Wait()
		text := clear
		if err == nil {
			text += fmt.Sprintf("%s: %s, %.2fs\n", what, summary, time.Since(start).Seconds())
		}
		_, _ = io.WriteString(w, text)
	}
}
