package main

import (
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/podrun/logs"
)

func logsCommand() *cli.Command {
	return &cli.Command{
		Name:                   "logs",
		Usage:                  "print what a container of husk run has written",
		UsageText:              "husk logs [options] CONTAINER",
		Description:            "Its standard output goes to standard output, its standard error to standard error. The oldest is dropped after some 64 MB.",
		UseShortOptionHandling: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the container has ended"},
			&cli.IntFlag{Name: "tail", Value: -1, DefaultText: "all", Usage: "begin with the last `N` lines"},
			&cli.BoolFlag{Name: "timestamps", Usage: "print the time before each line"},
		},
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "a container")
			if err != nil {
				return err
			}
			r, err := openRunner(c, false)
			if err != nil {
				return err
			}
			container, err := r.FindContainer(c.Context, name)
			if err != nil {
				return err
			}
			return r.Logs(c.Context, container, c.Bool("follow"), logs.ReadOptions{
				Tail: c.Int("tail"), Timestamps: c.Bool("timestamps"), Stdout: c.App.Writer, Stderr: c.App.ErrWriter,
			})
		},
	}
}
