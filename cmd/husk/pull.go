package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// maxPassword bounds what is read from standard input, which may be anything.
const maxPassword = 64 << 10

func pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "fetch manifest and config of an image, as a pod's pull would",
		UsageText: "husk pull [options] REFERENCE|oci:PATH[:TAG]|oci-archive:FILE[:TAG]|dir:PATH",
		Description: "Every pull contacts the registry, whatever the store holds. An image in a local directory or file, for " +
			"debugging, gets the name that its layout gives it, or localhost/NAME:TAG. Prints the image ID; on a terminal, " +
			"what it cost goes to standard error.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "username", Aliases: []string{"u"}, Usage: "log in to the registry as `NAME`"},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from standard input"},
			&cli.StringFlag{Name: "namespace", Usage: "apply the signature policy of a Kubernetes `NAMESPACE`"},
			formatFlag(formatText),
		},
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "a reference")
			if err != nil {
				return err
			}
			credentials, err := readCredentials(c)
			if err != nil {
				return err
			}
			n, err := readNode(c)
			if err != nil {
				return err
			}
			if err := n.open(); err != nil {
				return err
			}
			source, err := n.sourceOf(name)
			if err != nil {
				return err
			}
			done := progress(c, "pulling "+name)
			result, err := manifestonly.Pull(c.Context, manifestonly.Request{
				Name: name, Credentials: credentials, Namespace: c.String("namespace"),
			}, source, n.store)
			done(fmt.Sprintf("%d requests, %s; %d layers of %s not read", result.Stats.Requests, humanBytes(result.Stats.Bytes),
				result.Record.Layers, humanBytes(result.Record.LayerBytes)), err)
			if err != nil {
				return err
			}
			return show(c, newImageView(result.Record), func(w io.Writer) error {
				_, err := fmt.Fprintln(w, result.Record.ImageID())
				return err
			})
		},
	}
}

// readCredentials never takes a password from the command line, where every user
// of the machine could read it.
func readCredentials(c *cli.Context) (registryauth.Credentials, error) {
	user := c.String("username")
	if (user != "") != c.Bool("password-stdin") {
		return registryauth.Credentials{}, errdefs.Newf(errdefs.InvalidArgument, "pull", "--username and --password-stdin go together")
	}
	if user == "" {
		return registryauth.Credentials{}, nil
	}
	line, err := bufio.NewReader(io.LimitReader(c.App.Reader, maxPassword+1)).ReadString('\n')
	if err != nil && line == "" {
		return registryauth.Credentials{}, errdefs.Newf(errdefs.InvalidArgument, "pull", "no password on standard input")
	}
	if len(line) > maxPassword {
		return registryauth.Credentials{}, errdefs.Newf(errdefs.InvalidArgument, "pull", "the password is over %d bytes", maxPassword)
	}
	return registryauth.Credentials{Username: user, Password: strings.TrimRight(line, "\r\n")}, nil
}
