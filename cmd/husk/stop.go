package main

import (
	"errors"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// defaultGrace is how long a container may take to end by itself, as with podman and crictl.
const defaultGrace = 10

func stopCommand() *cli.Command {
	return &cli.Command{
		Name:        "stop",
		Usage:       "stop containers of husk run, or pods with all their containers",
		UsageText:   "husk stop [--time SECONDS] CONTAINER|POD...",
		Description: "Sends the image's stop signal, and after a while SIGKILL. One that has ended already is no error.",
		Flags: []cli.Flag{
			&cli.UintFlag{Name: "time", Aliases: []string{"t"}, Value: defaultGrace, Usage: "kill after `SECONDS`"},
		},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "want a container or a pod; usage: %s", c.Command.UsageText)
			}
			r, err := openRunner(c, false)
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range c.Args().Slice() {
				err := r.stop(c, name)
				if err == nil {
					err = printLine(c.App.Writer, name)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
}

// stop stops what a name stands for, the containers of a pod at the same time.
func (r *runner) stop(c *cli.Context, name string) error {
	list, err := r.Find(c.Context, name)
	if err != nil {
		return err
	}
	errs := make([]error, len(list))
	var stopping sync.WaitGroup
	for i, container := range list {
		stopping.Go(func() {
			errs[i] = r.Stop(c.Context, container, time.Duration(c.Uint("time"))*time.Second) //nolint:gosec // seconds that somebody waits
		})
	}
	stopping.Wait()
	return errors.Join(errs...)
}
