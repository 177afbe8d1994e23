package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func bundleCommand() *cli.Command {
	return &cli.Command{
		Name:      "bundle",
		Usage:     "write an OCI bundle for an image, without its layers",
		UsageText: "husk bundle [options] REFERENCE|oci:PATH[:TAG]|oci-archive:FILE[:TAG]|dir:PATH DIR [-- ARGUMENT...]",
		Description: "Fetches manifest and config as pull does, stores nothing, and writes DIR/config.json and an empty " +
			"DIR/rootfs. DIR is made, or empty. Arguments replace the image's CMD and follow its ENTRYPOINT. The annotation " +
			"io.kubernetes.cri-o.ImageName of config.json, which is printed too, names the image to unpack at rootfs by digest. " +
			"A user or group given by name is refused unless the runtime looks it up (--resolves-names): the numbers are in the layers.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `NAME[=VALUE]`, without a value to what husk has; may be repeated"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `USER[:GROUP]` instead of the image's user"},
			&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "start in `DIR` of the container"},
			&cli.StringFlag{Name: "hostname", Usage: "set the host `NAME`"},
			&cli.BoolFlag{Name: "read-only", Usage: "mount the root filesystem read-only"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the process a terminal"},
			&cli.BoolFlag{Name: "resolves-names", Usage: "for a runtime that resolves users against the image's files, as Husk's shim does; until then they are nobody, 65534"},
			&cli.StringFlag{Name: "username", Usage: "log in to the registry as `NAME`"},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from standard input"},
			&cli.StringFlag{Name: "namespace", Usage: "apply the signature policy of a Kubernetes `NAMESPACE`"},
			formatFlag(formatText),
		},
		Action: writeBundle,
	}
}

func writeBundle(c *cli.Context) error {
	name, dir, arguments, err := bundleArgs(c)
	if err != nil {
		return err
	}
	credentials, err := readCredentials(c)
	if err != nil {
		return err
	}
	env, err := environment(c)
	if err != nil {
		return err
	}
	n, err := readNode(c)
	if err != nil {
		return err
	}
	source, err := n.sourceOf(name)
	if err != nil {
		return err
	}
	img, _, err := manifestonly.Fetch(c.Context, manifestonly.Request{
		Name: name, Credentials: credentials, Namespace: c.String("namespace"),
	}, source, nil)
	if err != nil {
		return err
	}
	rec := img.Record()
	spec, err := bundlegen.Spec(rec, img.Pulled, bundlegen.Request{
		Args: arguments, Env: env, WorkingDir: c.String("workdir"), RunAsUsername: c.String("user"),
	}, bundlegen.SpecOptions{
		RewriteOptions: bundlegen.RewriteOptions{ResolvesNames: c.Bool("resolves-names")},
		Hostname:       c.String("hostname"), ReadonlyRoot: c.Bool("read-only"), Terminal: c.Bool("tty"),
	})
	if errdefs.Is(err, errdefs.UserUnresolvable) {
		return errdefs.Newf(errdefs.UserUnresolvable, c.Command.Name, "%w; here that is --user UID:GID, or --resolves-names", err)
	}
	if err != nil {
		return err
	}
	if err := bundlegen.WriteBundle(dir, spec); err != nil {
		return err
	}
	v := newBundleView(dir, rec, img.Pulled)
	return show(c, v, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, v.Image)
		return err
	})
}

// bundleArgs takes the command line apart. What the container runs stands behind "--", so
// that an option in the wrong place is none of its arguments.
func bundleArgs(c *cli.Context) (name, dir string, arguments []string, err error) {
	args := c.Args().Slice()
	for i, arg := range args {
		switch {
		case arg == "--" && i == 2:
			return args[0], args[1], args[3:], nil
		case strings.HasPrefix(arg, "-") && i > 0:
			return "", "", nil, errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "options go before the image, the container's arguments behind --; usage: %s", c.Command.UsageText)
		}
	}
	if len(args) != 2 {
		return "", "", nil, errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "want an image and a directory, got %d arguments; usage: %s", len(args), c.Command.UsageText)
	}
	return args[0], args[1], nil, nil
}

// environment is what --env says. A variable that husk has not got is not set, as with podman.
func environment(c *cli.Context) (env []string, err error) {
	for _, entry := range c.StringSlice("env") {
		name, _, has := strings.Cut(entry, "=")
		if name == "" {
			return nil, errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "--env %q has no name", entry)
		}
		if has {
			env = append(env, entry)
		} else if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env, nil
}

// bundleView is a written bundle as the command shows it to scripts. Its names, in JSON
// and in templates, are an interface: they may be added to, not changed.
type bundleView struct {
	Bundle         string `json:"bundle"`
	Image          string `json:"image"`
	ImageID        string `json:"image_id"`
	ManifestDigest string `json:"manifest_digest"`
	Platform       string `json:"platform"`
	Layers         int    `json:"layers"`
}

func newBundleView(dir string, rec imageref.Record, pulled imageref.PulledReference) bundleView {
	v := bundleView{
		Bundle: dir, Image: pulled.Pinned().String(), ImageID: rec.ImageID().String(),
		ManifestDigest: rec.Manifest.String(), Platform: rec.Platform, Layers: rec.Layers,
	}
	if abs, err := filepath.Abs(dir); err == nil {
		v.Bundle = abs
	}
	return v
}
