// Command husk is the daemon that gives stock CRI-O metadata-only image pulls,
// and the tool to look at what it keeps.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/husk-cri/husk/internal/podpull"
)

// version is set by the linker.
var version = "dev"

func main() {
	if os.Getenv("GOMAXPROCS") == "" {
		// Forwarding is short work between two processes: waking a second thread for
		// each hand-over costs more than it gains (docs/adr/0007-forwarding.md).
		runtime.GOMAXPROCS(1)
	}
	logrus.SetLevel(logrus.WarnLevel) // the libraries' log; Husk's own is log/slog
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	run := newApp().RunContext
	if len(os.Args) > 1 && os.Args[1] == podpull.ChildCommand {
		run = func(ctx context.Context, _ []string) error { return podpull.RunChild(ctx, os.Stdin, os.Stdout) }
	}
	if err := run(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "husk:", err)
		stop()
		os.Exit(exitCode(err)) //nolint:gocritic // exitAfterDefer: stop was called above
	}
}
