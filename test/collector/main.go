// Command collector is what an operator has beside a node, for the tests: a collector
// of OpenTelemetry spans, which it writes down, and a gRPC client that can make any
// CRI call with any metadata, calls that do not exist among them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "collector:", err)
		os.Exit(1)
	}
}

// run is the command: collect until ctx is done, or make one call.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("usage: collector collect|call [FLAG...]")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "collect":
		listen := flags.String("listen", "127.0.0.1:0", "`address` to take spans on; it is printed")
		spans := flags.String("spans", "", "`file` to append one JSON object a span to")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return collect(ctx, *listen, *spans, out)
	case "call":
		var o callOptions
		flags.StringVar(&o.socket, "socket", "", "`path` of the CRI socket")
		flags.StringVar(&o.traceparent, "traceparent", "", "W3C trace `context` to send")
		flags.DurationVar(&o.timeout, "timeout", 0, "deadline of the call; 0: none")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		if flags.NArg() != 1 || o.socket == "" {
			return errors.New("usage: collector call --socket PATH [FLAG...] SERVICE/METHOD <REQUEST.json")
		}
		return o.call(ctx, flags.Arg(0), in, out)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}
