// Command cdhclient asks a Confidential Data Hub, and fakes one, for end-to-end tests.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/husk-cri/husk/internal/testkit/cdhclient"
)

const usage = `usage:
  cdhclient pull --socket S IMAGE BUNDLE          prints the manifest's digest
  cdhclient resource --socket S URI               prints the resource
  cdhclient call --socket S SERVICE METHOD TEXT   sends TEXT as the message, prints the answer's bytes
  cdhclient fake --socket S [--resource URI=FILE]... [--echo SERVICE] [--refuse]
      serves a hub and an attestation agent; prints "ready", and every event as JSON`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type settings struct {
	socket, echo string
	refuse       bool
	resources    map[string][]byte
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	s := settings{resources: map[string][]byte{}}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&s.socket, "socket", "", "Unix `socket`")
	flags.StringVar(&s.echo, "echo", "", "`service` whose method Echo answers what it is sent")
	flags.BoolVar(&s.refuse, "refuse", false, "refuse every measurement")
	flags.Func("resource", "`URI=FILE`", func(v string) error {
		uri, file, _ := strings.Cut(v, "=")
		data, err := os.ReadFile(file)
		s.resources[uri] = data
		return err
	})
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] == "fake" {
		return fake(ctx, s, out)
	}
	client, err := cdhclient.Dial(ctx, s.socket)
	if err != nil {
		return err
	}
	answer, err := ask(ctx, client, args[0], flags.Args())
	if err = errors.Join(err, client.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, answer)
	return err
}

func ask(ctx context.Context, client *cdhclient.Client, command string, args []string) (string, error) {
	switch {
	case command == "pull" && len(args) == 2:
		return client.PullImage(ctx, args[0], args[1])
	case command == "resource" && len(args) == 1:
		data, err := client.GetResource(ctx, args[0])
		return string(data), err
	case command == "call" && len(args) == 3:
		data, err := client.Call(ctx, args[0], args[1], []byte(args[2]))
		return string(data), err
	}
	return "", errors.New(usage)
}

func fake(ctx context.Context, s settings, out io.Writer) error {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", s.socket)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	f := cdhclient.Fake{Resources: s.resources, Echo: s.echo, Measured: func(e cdhclient.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if s.refuse {
			return errors.New("refused")
		}
		return json.NewEncoder(out).Encode(e)
	}}
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	return f.Serve(ctx, l)
}
