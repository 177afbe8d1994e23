package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name:      "images",
		Usage:     "list the layer-less images of this node",
		UsageText: "husk images [--format json]",
		Flags:     []cli.Flag{formatFlag()},
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
	if c.String("format") == "json" {
		return printJSON(c.App.Writer, views)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	if _, err := fmt.Fprintln(w, "REFERENCE\tIMAGE ID\tLAYERS\tENCRYPTED\tON HOST\tIN LAYERS"); err != nil {
		return err
	}
	for _, v := range views {
		for _, ref := range v.References {
			if _, err := fmt.Fprintf(w, "%s\t%.12s\t%d\t%d\t%s\t%s\n", ref.Reference, v.ImageID,
				v.Layers, v.EncryptedLayers, humanBytes(v.StoredBytes), humanBytes(v.LayerBytes)); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}
