package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/urfave/cli/v2"
)

// versionView is what husk version shows.
type versionView struct {
	Version   string `json:"version"`
	GoVersion string `json:"go_version"`
	Platform  string `json:"platform"`
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:      "version",
		Usage:     "show the version of husk",
		UsageText: "husk version [--format text|json|TEMPLATE]",
		Flags:     []cli.Flag{formatFlag(formatText)},
		Before:    noArgs,
		Action: func(c *cli.Context) error {
			v := versionView{Version: version, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			return show(c, v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "husk %s\n%s %s\n", v.Version, v.GoVersion, v.Platform)
				return err
			})
		},
	}
}
