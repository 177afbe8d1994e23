// Command crictl is a stand-in for cri-tools' crictl, which is no Go module: the subcommands and flags that the
// tests of this project use, with crictl's names and output.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/test/node/internal/crictl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	err := crictl.App(os.Stdout, os.Stderr).RunContext(ctx, os.Args)
	if err == nil {
		return
	}
	code := 1
	var exit cli.ExitCoder
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "crictl: %v\n", err)
	os.Exit(code) //nolint:gocritic // the signal handler goes with the process
}
