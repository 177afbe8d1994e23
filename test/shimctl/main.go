// Command shimctl calls the image service of a pod's shim (pkg/api/shim/v1) on the
// socket where husk does, and prints what is answered as JSON, one message a line.
//
//	shimctl pull   --sandbox ID [--creds FILE] REFERENCE
//	shimctl list   --sandbox ID
//	shimctl remove --sandbox ID IMAGE
//	shimctl status --sandbox ID
//
// FILE, "-" for standard input, holds USER:PASSWORD: an argument would show in /proc.
// An error is printed as {"error":{"kind","code","message"}} too. SIGINT and SIGTERM end
// a pull as a client does that leaves.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/test/internal/rig"
)

const (
	// callTimeout bounds one run: a pull of a test's image.
	callTimeout = 5 * time.Minute
	// maxCredentials bounds the file of credentials: a wrong path must not fill memory.
	maxCredentials = 64 << 10
)

func main() {
	rig.Main("shimctl", callTimeout, func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) })
}

// settings are the command line.
type settings struct {
	state, sandbox, creds string
	args                  []string
}

func parse(verb string, args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("shimctl "+verb, flag.ContinueOnError)
	flags.StringVar(&s.sandbox, "sandbox", "", "`ID` of the pod's sandbox")
	flags.StringVar(&s.state, "state", pod.DefaultStateDir, "`directory` of the pods' state")
	flags.StringVar(&s.creds, "creds", "", "pull: `file` with USER:PASSWORD, \"-\" for standard input")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	s.args = flags.Args()
	if s.sandbox == "" {
		return s, errors.New("give --sandbox")
	}
	return s, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("say pull, list, remove or status")
	}
	s, err := parse(args[0], args[1:])
	if err != nil {
		return err
	}
	p, err := pod.New(s.state, s.sandbox)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.Socket())
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	// ttrpc has no other way to cancel a stream.
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer func() { stop(); _ = client.Close() }()
	caller := caller{shimv1.NewImagesClient(client), json.NewEncoder(out)}
	return caller.report(caller.do(ctx, args[0], s))
}

type caller struct {
	client shimv1.ImagesClient
	out    *json.Encoder
}

func (c caller) do(ctx context.Context, verb string, s settings) error {
	argument := ""
	if len(s.args) > 0 {
		argument = s.args[0]
	}
	switch verb {
	case "pull":
		return c.pull(ctx, s, argument)
	case "list":
		resp, err := c.client.ListImages(ctx, &shimv1.ListImagesRequest{})
		return c.print(resp, err)
	case "remove":
		resp, err := c.client.RemoveImage(ctx, &shimv1.RemoveImageRequest{Image: argument})
		return c.print(resp, err)
	case "status":
		resp, err := c.client.ImageStatus(ctx, &shimv1.ImageStatusRequest{})
		return c.print(resp, err)
	}
	return fmt.Errorf("%q: say pull, list, remove or status", verb)
}

func (c caller) pull(ctx context.Context, s settings, reference string) error {
	req := &shimv1.PullImageRequest{Reference: reference}
	if s.creds != "" {
		creds, err := credentials(s.creds)
		if err != nil {
			return err
		}
		req.Credentials = creds
	}
	stream, err := c.client.PullImage(ctx, req)
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err := c.print(resp, err); err != nil {
			return err
		}
	}
}

func (c caller) print(message any, err error) error {
	if err != nil {
		return err
	}
	return c.out.Encode(message)
}

// report prints an error of the service as well.
func (c caller) report(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	kind := ""
	for _, detail := range s.Details() {
		if k, ok := detail.(*shimv1.Kind); ok {
			kind = k.GetKind()
		}
	}
	return errors.Join(err, c.out.Encode(map[string]any{"error": map[string]string{
		"kind": kind, "code": s.Code().String(), "message": s.Message(),
	}}))
}

func credentials(file string) (creds *shimv1.Credentials, err error) {
	in := os.Stdin
	if file != "-" {
		if in, err = os.Open(file); err != nil {
			return nil, err
		}
		defer func() { _ = in.Close() }() // read only
	}
	data, err := io.ReadAll(io.LimitReader(in, maxCredentials))
	if err != nil {
		return nil, err
	}
	user, password, ok := strings.Cut(string(bytes.TrimSpace(data)), ":")
	if !ok {
		return nil, errors.New("want USER:PASSWORD in the file of credentials")
	}
	return &shimv1.Credentials{Username: user, Password: password}, nil
}
