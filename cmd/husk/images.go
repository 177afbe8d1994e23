package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/urfave/cli/v2"
)

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name:      "images",
		Usage:     "list the layer-less images of this node",
		UsageText: "husk images [--format text|json|TEMPLATE]",
		Flags:     []cli.Flag{formatFlag(formatText)},
		Before:    noArgs,
		Action:    images,
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
