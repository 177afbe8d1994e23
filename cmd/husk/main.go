// Command husk is the daemon that gives stock CRI-O metadata-only image pulls,
// and the tool to look at what it keeps.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newApp().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "husk:", err)
		stop()
		os.Exit(exitCode(err)) //nolint:gocritic // exitAfterDefer: stop was called above
	}
}
