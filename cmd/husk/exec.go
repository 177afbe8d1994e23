package main

import (
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/podrun"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run a command in a container of husk run",
		UsageText: "husk exec [options] CONTAINER COMMAND [ARGUMENT...]",
		Description: "As the container's user, with its environment. Exits as the command does. " +
			"CONTAINER is a name or the beginning of an ID.",
		UseShortOptionHandling: true, // -it
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "pass standard input on"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `NAME[=VALUE]`, without a value to what husk has; may be repeated"},
			&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "start in `DIR` of the container"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() < 2 {
				return errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "want a container and a command; usage: %s", c.Command.UsageText)
			}
			env, err := environment(c)
			if err != nil {
				return err
			}
			r, err := openRunner(c, false)
			if err != nil {
				return err
			}
			container, err := r.FindContainer(c.Context, c.Args().First())
			if err != nil {
				return err
			}
			ctx, a := attach(c)
			defer a.end()
			code, err := r.Exec(ctx, container, podrun.ExecOptions{
				Args: c.Args().Tail(), Env: env, WorkingDir: c.String("workdir"), Terminal: c.Bool("tty"), IO: a.IO, Started: a.started,
			})
			return a.result(ctx, code, err)
		},
	}
}
