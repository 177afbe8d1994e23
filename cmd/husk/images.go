package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/sandboxes"
)

func imagesCommand(pods sandboxes.Client) *cli.Command {
	return &cli.Command{
		Name:      "images",
		Usage:     "list the layer-less images of this node, or the images in its pods",
		UsageText: "husk images [--sandboxes] [--format text|json|TEMPLATE]",
		Description: "With --sandboxes the pods' shims are asked for the images in their stores: " +
			"which pod holds which image, how many bytes unpacked, since when. Pods whose shim does not answer are named on standard error.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "sandboxes", Usage: "list what the pods have pulled"},
			formatFlag(formatText),
		},
		Before: noArgs,
		Action: func(c *cli.Context) error {
			if c.Bool("sandboxes") {
				return sandboxImages(c, pods)
			}
			return images(c)
		},
	}
}

func images(c *cli.Context) error {
	n, err := openNode(c)
	if err != nil {
		return err
	}
	records, err := n.store.List(c.Context)
	if err != nil {
		return err
	}
	views := make([]imageView, 0, len(records))
	for _, r := range records {
		views = append(views, newImageView(r))
	}
	return show(c, views, func(w io.Writer) error {
		var rows [][]string
		for _, v := range views {
			for _, ref := range v.References {
				rows = append(rows, []string{
					ref.Reference, fmt.Sprintf("%.12s", v.ImageID), v.Platform, strconv.Itoa(v.Layers),
					strconv.Itoa(v.EncryptedLayers), humanBytes(v.StoredBytes), humanBytes(v.LayerBytes),
				})
			}
		}
		return printTable(w, []string{"REFERENCE", "IMAGE ID", "PLATFORM", "LAYERS", "ENCRYPTED", "ON HOST", "IN LAYERS"}, rows)
	})
}
