// Command pinger is a CRI client that asks at a steady rate, for the tests that
// restart husk under it, and a service manager that keeps husk's socket.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pinger:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: pinger load|keep|exec [FLAG...]")
	}
	switch args[0] {
	case "load":
		return load(ctx, args[1:])
	case "keep":
		return keep(ctx, args[1:])
	case "exec":
		return become(args[1:])
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}

// load prints what became of the requests, once it is interrupted or the time is over.
func load(ctx context.Context, args []string) error {
	var o options
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.StringVar(&o.socket, "socket", "", "`path` of the CRI socket")
	flags.StringVar(&o.image, "image", "", "`reference` that ImageStatus asks for")
	flags.IntVar(&o.rate, "rate", 50, "requests per second")
	flags.DurationVar(&o.last, "for", 0, "how long; zero: until SIGTERM")
	flags.BoolVar(&o.wait, "wait", true, "requests wait for a connection, as kubelet's retries amount to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.socket == "" || o.rate <= 0 {
		return errors.New("load needs --socket and a positive --rate")
	}
	sum, err := o.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(sum)
}
