package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/daemon"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// configView is the effective configuration as husk config shows it to scripts.
type configView struct {
	config.Config
	// Files were read, in this order; Origins says which of them set a key.
	Files   []string          `json:"files"`
	Origins map[string]string `json:"origins"`
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:      "config",
		Usage:     "show the effective configuration, or check it and CRI-O's",
		UsageText: "husk config [--check] [--format text|json|TEMPLATE]",
		Description: "Without options, prints husk.toml with its drop-ins and defaults as one file, each key with what it " +
			"does and where its value comes from.\n\n" +
			"With --check, reads crio.conf and its drop-ins too, and prints what is wrong with either, a problem a line: " +
			"FILE: key: what is wrong: what to do. Exits 0 only if nothing is. " +
			"CRI-O's own flags and CONTAINER_* variables, which win over its files, are not seen.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "check", Usage: "check the configuration, and CRI-O's as far as Husk depends on it"},
			formatFlag(formatText),
		},
		Before: noArgs,
		Action: func(c *cli.Context) error {
			loaded := config.Read(c.String("config"))
			if c.Bool("check") {
				return showProblems(c, daemon.Check(loaded))
			}
			if err := loaded.Err(); err != nil {
				return err
			}
			view := configView{Config: loaded.Config, Files: append([]string{}, loaded.Files...), Origins: loaded.Origins}
			if view.Handlers == nil {
				view.Handlers = map[string]config.Handler{} // {} in JSON, not null
			}
			return show(c, view, func(w io.Writer) error { return config.Render(w, loaded, fromCRIO(loaded.Config)) })
		},
	}
}

// fromCRIO has what crio.conf gives the keys of husk.toml that are not set; nothing if it
// cannot be read, which husk config --check says.
func fromCRIO(c config.Config) map[string]string {
	crio, err := crioconf.Load(c.CrioConfig, c.CrioConfigDir, crioconf.Storage{})
	if err != nil {
		return nil
	}
	return map[string]string{"backend": crio.Listen, "default_handler": crio.DefaultRuntime}
}

// showProblems fails when there are any.
func showProblems(c *cli.Context, problems []config.Problem) error {
	err := show(c, problems, func(w io.Writer) error {
		for _, p := range problems {
			if _, err := fmt.Fprintln(w, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(problems) == 0 {
		return err
	}
	return errdefs.Newf(errdefs.InvalidArgument, "check configuration", "problems found: %d", len(problems))
}
