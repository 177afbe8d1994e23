package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func rmCommand() *cli.Command {
	return &cli.Command{
		Name:  "rm",
		Usage: "remove a layer-less image: by ID with all its references, by reference only that one",
		Description: "An image that a container was made from is not removed. " +
			"Ordinary images are CRI-O's; use crictl rmi for them.",
		UsageText: "husk rm REFERENCE|ID",
		Action: onRecords(func(c *cli.Context, n *node, found imageref.Match) error {
			err := n.remove(c.Context, found)
			if errdefs.Is(err, errdefs.InUse) { // of a storage ID that the user has never seen
				return errdefs.Newf(errdefs.InUse, "remove "+c.Args().First(), "a container was made from it (crictl ps -a)")
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, c.Args().First())
			return err
		}, (*node).find),
	}
}

// remove removes one reference, or the records of an ID.
func (n *node) remove(ctx context.Context, found imageref.Match) error {
	if !found.By.IsZero() {
		return n.store.RemoveReference(ctx, found.By)
	}
	for _, r := range found.Records {
		if err := n.store.Remove(ctx, r.StorageID); err != nil {
			return err
		}
	}
	return nil
}
