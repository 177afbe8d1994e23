// Command husk is the daemon that gives stock CRI-O metadata-only image pulls, the tool to
// look at what it keeps, and a way to run containers without either.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/husk-cri/husk/internal/podpull"
	"github.com/husk-cri/husk/internal/podrun/pause"
)

// version is set by the linker.
var version = "dev"

func main() {
	if os.Args[0] == pause.Path {
		pause.Run()
		return
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// Forwarding is short work between two processes: waking a second thread for
		// each hand-over costs more than it gains (docs/adr/0007-forwarding.md).
		runtime.GOMAXPROCS(1)
	}
	logrus.SetLevel(logrus.WarnLevel) // the libraries' log; Husk's own is log/slog
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	run := newApp().RunContext
	if len(os.Args) > 1 && os.Args[1] == podpull.ChildCommand {
		run = func(ctx context.Context, _ []string) error { return podpull.RunChild(ctx, os.Stdin, os.Stdout) }
	}
	err := run(ctx, os.Args)
	stop()
	os.Exit(complain(os.Stderr, err))
}
