package main

import (
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/daemon"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "stand in front of CRI-O",
		UsageText: "husk [--config FILE] serve",
		Description: "Listens where CRI-O did. A husk that is started while another one serves takes its sockets over, and no " +
			"call is lost; so does one that systemd starts with husk.socket. SIGHUP reads husk.toml, crio.conf and " +
			"registries.conf again; SIGTERM lets the calls under way end.",
		Before: noArgs,
		Action: func(c *cli.Context) error {
			if err := needsRoot(c); err != nil {
				return err
			}
			return daemon.Serve(c.Context, daemon.Options{Path: c.String("config"), Version: version, Log: c.App.ErrWriter})
		},
	}
}
