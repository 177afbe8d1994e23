package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/guest"
)

// releaseTimeout bounds the clearing up at the end of serve: unmounting, mostly.
const releaseTimeout = 30 * time.Second

// guestCommand is the sandbox side inside a real guest, where there is no CRI-O and no
// husk.toml: everything comes from flags and image-rs's configuration.
func guestCommand() *cli.Command {
	return &cli.Command{
		Name:  "guest",
		Usage: "pull images inside a guest, in the place of image-rs",
		Description: "For confidential guests of Kata Containers. serve answers the agent's image pulls as the Confidential Data " +
			"Hub does, with the [image] section of cdh.toml; the other commands are for debugging. See docs/guest.md.",
		Before: func(*cli.Context) error {
			// A pull decrypts, inflates and hashes several layers at once; the one thread
			// that main leaves is for the front.
			runtime.SetDefaultGOMAXPROCS()
			return nil
		},
		Subcommands: []*cli.Command{guestServeCommand(), guestPullCommand(), guestInspectCommand(), guestImagesCommand()},
	}
}

// guestFlags are those of every command that pulls.
func guestFlags() []cli.Flag {
	return append(guestStoreFlags(),
		&cli.StringFlag{Name: "bundle-parent", Value: guest.DefaultBundleParent, Usage: "make bundles below `DIR` only"},
		&cli.StringFlag{Name: "run-dir", Value: guest.DefaultRunDir, Usage: "keep files with credentials in `DIR`, a tmpfs"},
		&cli.StringFlag{Name: "keys-dir", Usage: "open encrypted layers with the private keys in `DIR`"},
		&cli.StringFlag{
			Name: "key-providers", EnvVars: []string{"OCICRYPT_KEYPROVIDER_CONFIG"},
			Usage: "ask the key providers of `FILE`, an ocicrypt_keyprovider.conf, for keys of encrypted layers; without it, the Confidential Data Hub",
		},
		&cli.StringFlag{Name: "cdh-socket", Usage: "fetch kbs:// resources and keys from the Confidential Data Hub at `SOCKET`, and forward to it what is no image pull"},
		&cli.StringFlag{Name: "aa-socket", Value: guest.DefaultAASocket, Usage: "have each pull measured by the attestation agent at `SOCKET`, where there is one"},
	)
}

// guestStoreFlags say where the images are.
func guestStoreFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "cdh-config", Value: guest.DefaultConfig, Usage: "read [image] from `FILE`, which must be there if it is named; without one the kernel parameters count", TakesFile: true},
		&cli.StringFlag{Name: "kernel-parameters", Value: guest.KernelParameters, Usage: "read the kernel parameters from `FILE`", TakesFile: true},
		&cli.StringFlag{Name: "work-dir", Usage: "keep images in `DIR` instead of the work_dir of the configuration"},
	}
}

func newGuest(c *cli.Context) *guest.Guest { return guest.New(guestOptions(c)) }

func guestOptions(c *cli.Context) guest.Options {
	var handler slog.Handler = slog.NewTextHandler(c.App.ErrWriter, nil)
	if c.String("progress") == progressJSON {
		handler = slog.NewJSONHandler(c.App.ErrWriter, nil)
	}
	return guest.Options{
		Config: c.String("cdh-config"), ConfigNamed: c.IsSet("cdh-config"), Cmdline: c.String("kernel-parameters"), WorkDir: c.String("work-dir"),
		RunDir: c.String("run-dir"), BundleParent: c.String("bundle-parent"), KeysDir: c.String("keys-dir"), KeyProviders: c.String("key-providers"),
		CDHSocket: c.String("cdh-socket"), AASocket: c.String("aa-socket"),
		Log: slog.New(handler),
	}
}

func guestServeCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "answer api.ImagePullService over ttrpc, and forward the rest",
		UsageText: "husk guest serve [options]",
		Description: "The configuration is read at the first pull, and not again. At the end, bundles that no container uses are " +
			"taken back; the layers stay.",
		Flags:  append(guestFlags(), &cli.StringFlag{Name: "socket", Value: guest.DefaultSocket, Usage: "listen at `SOCKET`"}),
		Before: noArgs,
		Action: func(c *cli.Context) error {
			g := newGuest(c)
			if err := g.Start(c.Context); err != nil {
				// Whatever it is, pulls may work, and say more than a service that is not there.
				slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)).Warn("what another process left is not all removed", "error", err.Error())
			}
			err := g.Serve(c.Context, c.String("socket"))
			return errors.Join(err, closeGuest(c, g))
		},
	}
}

// closeGuest clears up, also after a signal.
func closeGuest(c *cli.Context, g *guest.Guest) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), releaseTimeout)
	defer cancel()
	return g.Close(ctx)
}

func guestPullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "pull an image as serve does",
		UsageText: "husk guest pull [options] REFERENCE|oci:DIR[:TAG]|oci-archive:FILE[:TAG]",
		Description: "Layers that are there are not fetched again; a reference with a digest that was pulled before needs no " +
			"network. Prints the digest of the manifest; how far it is, and what it cost, goes to standard error.",
		Flags: append(guestFlags(),
			&cli.StringFlag{Name: "bundle", Usage: "make a bundle at `PATH`, which stays"}, progressFlag(), formatFlag(formatText)),
		Action: func(c *cli.Context) (err error) {
			name, err := oneArg(c, "a reference")
			if err != nil {
				return err
			}
			options := guestOptions(c)
			options.Locations = true
			g := guest.New(options)
			defer func() { err = errors.Join(err, g.Forget()) }()
			tell, done := layerProgress(c, "pulling "+name)
			pulled, err := g.Pull(c.Context, name, c.String("bundle"), tell)
			done(fmt.Sprintf("%d of %d layers, %s fetched", pulled.FetchedLayers, pulled.Layers, humanBytes(pulled.FetchedBytes)), err)
			if err != nil {
				return err
			}
			return show(c, pulled, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, pulled.ManifestDigest)
				return err
			})
		},
	}
}

func guestInspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show an image of this guest as JSON, with its config",
		UsageText: "husk guest inspect [--format json|TEMPLATE] REFERENCE@DIGEST|DIGEST|ID",
		Flags:     append(guestStoreFlags(), formatFlag(formatJSON)),
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "a reference, a digest or an image ID")
			if err != nil {
				return err
			}
			found, err := newGuest(c).Find(name)
			if err != nil {
				return err
			}
			return show(c, found, func(w io.Writer) error { return printJSON(w, found) })
		},
	}
}

func guestImagesCommand() *cli.Command {
	return &cli.Command{
		Name:      "images",
		Usage:     "list the images of this guest",
		UsageText: "husk guest images [--format text|json|TEMPLATE]",
		Flags:     append(guestStoreFlags(), formatFlag(formatText)),
		Before:    noArgs,
		Action: func(c *cli.Context) error {
			list, err := newGuest(c).Images()
			if err != nil {
				return err
			}
			return show(c, list, func(w io.Writer) error {
				rows := make([][]string, 0, len(list))
				for _, p := range list {
					rows = append(rows, []string{p.Reference, fmt.Sprintf("%.12s", p.ImageID), strconv.Itoa(p.Layers), humanBytes(p.Bytes), p.PulledAt.Format(time.RFC3339)})
				}
				return printTable(w, []string{"REFERENCE", "IMAGE ID", "LAYERS", "SIZE", "PULLED"}, rows)
			})
		},
	}
}
