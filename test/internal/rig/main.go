package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Main is the main function of a command that works with a rig: run is
// interrupted by SIGINT, SIGTERM and the timeout, and its error is the exit code.
func Main(name string, timeout time.Duration, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	err := run(ctx, os.Args[1:])
	cancel()
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// Flags adds the options of a rig to the flags of a command.
func (o *Options) Flags(flags *flag.FlagSet) {
	flags.StringVar(&o.Bin, "bin", "build/bin", "`directory` of the binaries")
	flags.StringVar(&o.Cache, "cache", "", "testnode's cache `directory`")
}
