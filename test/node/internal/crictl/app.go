// Package crictl is a small CRI client with the commands, flags and output of cri-tools' crictl, as far as this
// project's tests need them. It calls through k8s.io/cri-client, kubelet's own client, so that an answer kubelet
// would reject (a container status without an image, say) fails here as well.
package crictl

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	internalapi "k8s.io/cri-api/pkg/apis"
	remote "k8s.io/cri-client/pkg"
)

const (
	defaultEndpoint = "unix:///var/run/crio/crio.sock"
	// defaultTimeout is longer than crictl's two seconds: the machines that tests run on are slow and busy.
	defaultTimeout = 30 * time.Second
)

// App is the command line. Results go to stdout, notes to stderr.
func App(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:                   "crictl",
		Usage:                  "client for CRI (stand-in for cri-tools' crictl)",
		Writer:                 stdout,
		ErrWriter:              stderr,
		HideVersion:            true,
		UseShortOptionHandling: true,
		ExitErrHandler:         func(*cli.Context, error) {}, // main exits
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "runtime-endpoint", Aliases: []string{"r"}, Value: defaultEndpoint,
				EnvVars: []string{"CONTAINER_RUNTIME_ENDPOINT"}, Usage: "endpoint of the CRI runtime service",
			},
			&cli.StringFlag{
				Name: "image-endpoint", Aliases: []string{"i"},
				EnvVars: []string{"IMAGE_SERVICE_ENDPOINT"}, Usage: "endpoint of the CRI image service (default: the runtime's)",
			},
			&cli.DurationFlag{
				Name: "timeout", Aliases: []string{"t"}, Value: defaultTimeout,
				Usage: "timeout of a call (RunPodSandbox has twice as much, PullImage none)",
			},
		},
		Commands: append(append(podCommands(), containerCommands()...), append(imageCommands(), nodeCommands()...)...),
	}
}

func runtimeService(c *cli.Context) (internalapi.RuntimeService, error) {
	s, err := remote.NewRemoteRuntimeService(c.String("runtime-endpoint"), c.Duration("timeout"), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return s, nil
}

func imageService(c *cli.Context) (internalapi.ImageManagerService, error) {
	endpoint := c.String("image-endpoint")
	if endpoint == "" {
		endpoint = c.String("runtime-endpoint")
	}
	s, err := remote.NewRemoteImageService(endpoint, c.Duration("timeout"), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return s, nil
}

// needArgs checks the number of arguments; most -1 means any number.
func needArgs(c *cli.Context, least, most int) error {
	if n := c.NArg(); n < least || most >= 0 && n > most {
		return fmt.Errorf("%s: wrong number of arguments: %s", c.Command.Name, c.Command.ArgsUsage)
	}
	return nil
}

// eachArg calls do for every argument, also after one has failed, and prints the arguments that it worked for.
func eachArg(c *cli.Context, done string, do func(arg string) error) error {
	if err := needArgs(c, 1, -1); err != nil {
		return err
	}
	var errs []error
	for _, a := range c.Args().Slice() {
		if err := do(a); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := fmt.Fprintln(c.App.Writer, strings.TrimSpace(done+" "+a)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return errors.Join(errs...)
}

// keyValues reads "k=v" flags.
func keyValues(flags []string) (map[string]string, error) {
	m := make(map[string]string, len(flags))
	for _, f := range flags {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not key=value", f)
		}
		m[k] = v
	}
	return m, nil
}
