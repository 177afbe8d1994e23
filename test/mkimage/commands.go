package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/testkit/images"
)

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "where to write the image: oci:DIR:TAG", Required: true}
}

func summaryFlag() cli.Flag {
	return &cli.StringFlag{Name: "summary", Usage: "write the JSON summary to `FILE` instead of standard output"}
}

// parseOutput takes "oci:DIR:TAG" apart.
func parseOutput(s string) (dir, tag string, err error) {
	dir, ok := strings.CutPrefix(s, "oci:")
	i := strings.LastIndexByte(dir, ':')
	if !ok || i <= 0 || i == len(dir)-1 {
		return "", "", fmt.Errorf("output %q: want oci:DIR:TAG", s)
	}
	return dir[:i], dir[i+1:], nil
}

func buildCommand() *cli.Command {
	return &cli.Command{
		Name:      "build",
		Usage:     "build an image on busybox",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			outputFlag(), summaryFlag(),
			&cli.StringFlag{Name: "busybox", Value: images.DefaultBusybox, Usage: `static busybox for the first layer; "" for none`},
			&cli.StringFlag{Name: "passwd", Usage: "further lines of /etc/passwd, after root's"},
			&cli.StringFlag{Name: "group", Usage: "further lines of /etc/group, after root's"},
			&cli.StringSliceFlag{Name: "layer", Usage: "add a layer with one file: `/PATH=CONTENT`, or /PATH@FILE (repeatable, in order)"},
			&cli.StringSliceFlag{Name: "layer-random", Usage: "add a layer of incompressible bytes: `SIZE` such as 40MiB (repeatable, after --layer)"},
			&cli.StringFlag{Name: "user", Usage: "USER of the image"},
			&cli.StringSliceFlag{Name: "env", Usage: "`K=V` (repeatable)"},
			&cli.StringSliceFlag{Name: "entrypoint", Usage: "one `WORD` of the entrypoint (repeatable)"},
			&cli.StringSliceFlag{Name: "cmd", Usage: "one `WORD` of the command (repeatable)"},
			&cli.StringFlag{Name: "workdir", Usage: "working directory"},
			&cli.StringSliceFlag{Name: "volume", Usage: "image volume `PATH` (repeatable)"},
			&cli.StringSliceFlag{Name: "label", Usage: "`K=V` (repeatable)"},
			&cli.StringFlag{Name: "stop-signal", Usage: "stop signal"},
			&cli.StringFlag{Name: "index", Usage: "comma-separated `PLATFORMS`, such as linux/amd64,linux/arm64; two or more make an index"},
			&cli.StringFlag{Name: "compression", Value: string(images.Gzip), Usage: "gzip, zstd or none"},
			&cli.Uint64Flag{Name: "seed", Usage: "seed of the random layers"},
			&cli.StringSliceFlag{Name: "encrypt-key", Usage: "encrypt layers for this PEM public key `FILE` (repeatable)"},
			&cli.IntSliceFlag{Name: "encrypt-layer", Usage: "encrypt only this layer `N`, 0 the lowest, -1 the highest (repeatable)"},
		},
		Action: runBuild,
	}
}

func runBuild(c *cli.Context) error {
	dir, tag, err := parseOutput(c.String("output"))
	if err != nil {
		return err
	}
	spec, err := specFromFlags(c)
	if err != nil {
		return err
	}
	summary, err := images.Build(c.Context, dir, tag, spec)
	if err != nil {
		return err
	}
	return summary.WriteJSON(c.String("summary"))
}

func specFromFlags(c *cli.Context) (images.Spec, error) {
	labels, err := parseLabels(c.StringSlice("label"))
	if err != nil {
		return images.Spec{}, err
	}
	platforms, err := parsePlatforms(c.String("index"))
	if err != nil {
		return images.Spec{}, err
	}
	layers, err := parseLayers(c.StringSlice("layer"), c.StringSlice("layer-random"))
	if err != nil {
		return images.Spec{}, err
	}
	encryption, err := parseEncryption(c.StringSlice("encrypt-key"), c.IntSlice("encrypt-layer"))
	if err != nil {
		return images.Spec{}, err
	}
	return images.Spec{
		Busybox: c.String("busybox"),
		Passwd:  accounts("root:x:0:0:root:/root:/bin/sh", c.String("passwd")),
		Group:   accounts("root:x:0:", c.String("group")),
		Layers:  layers,
		Config: imgspec.ImageConfig{
			User: c.String("user"), Env: c.StringSlice("env"), Entrypoint: c.StringSlice("entrypoint"),
			Cmd: c.StringSlice("cmd"), WorkingDir: c.String("workdir"), Volumes: set(c.StringSlice("volume")),
			Labels: labels, StopSignal: c.String("stop-signal"),
		},
		Platforms:   platforms,
		Compression: images.Compression(c.String("compression")),
		Seed:        c.Uint64("seed"),
		Encrypt:     encryption,
	}, nil
}

func pauseCommand() *cli.Command {
	return &cli.Command{
		Name:      "pause",
		Usage:     "build a pause image: one static binary as /pause",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			outputFlag(), summaryFlag(),
			&cli.StringFlag{Name: "binary", Usage: "the static binary", Required: true},
		},
		Action: func(c *cli.Context) error {
			dir, tag, err := parseOutput(c.String("output"))
			if err != nil {
				return err
			}
			binary, err := os.ReadFile(c.String("binary"))
			if err != nil {
				return err
			}
			summary, err := images.Build(c.Context, dir, tag, images.Spec{
				Layers: []images.Layer{{Files: []images.File{{Path: "/pause", Content: binary, Mode: 0o755}}}},
				Config: imgspec.ImageConfig{User: "65535:65535", Entrypoint: []string{"/pause"}},
			})
			if err != nil {
				return err
			}
			return summary.WriteJSON(c.String("summary"))
		},
	}
}

func artifactCommand() *cli.Command {
	return &cli.Command{
		Name:      "artifact",
		Usage:     "build an OCI artifact that is no image",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			outputFlag(), summaryFlag(),
			&cli.StringFlag{Name: "type", Value: "application/vnd.example.thing", Usage: "artifact type"},
			&cli.StringFlag{Name: "content", Value: "content", Usage: "its one blob"},
		},
		Action: func(c *cli.Context) error {
			dir, tag, err := parseOutput(c.String("output"))
			if err != nil {
				return err
			}
			summary, err := images.BuildArtifact(dir, tag, c.String("type"), []byte(c.String("content")))
			if err != nil {
				return err
			}
			return summary.WriteJSON(c.String("summary"))
		},
	}
}

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:      "keygen",
		Usage:     "make an RSA key pair: DIR/private.pem and DIR/public.pem",
		ArgsUsage: "DIR",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return errors.New("keygen: want one directory")
			}
			return images.GenerateKeys(c.Args().First())
		},
	}
}

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "copy an image to a registry without TLS",
		ArgsUsage: "oci:DIR:TAG HOST:PORT/REPOSITORY:TAG",
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return errors.New("push: want a source and a destination")
			}
			dir, tag, err := parseOutput(c.Args().Get(0))
			if err != nil {
				return err
			}
			return images.Push(c.Context, dir, tag, c.Args().Get(1))
		},
	}
}
