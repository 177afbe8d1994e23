package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func rmCommand(pods sandboxes.Client) *cli.Command {
	records := onRecords(func(c *cli.Context, n *node, found imageref.Match) error {
		err := n.remove(c.Context, found)
		if errdefs.Is(err, errdefs.InUse) { // of a storage ID that the user has never seen
			return errdefs.Newf(errdefs.InUse, "remove "+c.Args().First(), "a container was made from it (crictl ps -a)")
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, c.Args().First())
		return err
	}, (*node).find)
	return &cli.Command{
		Name:  "rm",
		Usage: "remove a layer-less image: by ID with all its references, by reference only that one",
		Description: "An image that a container was made from is not removed. " +
			"Ordinary images are CRI-O's; use crictl rmi for them. With --sandbox, the layers of an image are removed " +
			"from the store of that pod; its layer-less image stays.",
		UsageText: "husk rm [--sandbox ID] REFERENCE|ID",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "sandbox", Usage: "remove it from the pod whose sandbox `ID` begins so (crictl pods)"},
		},
		Action: func(c *cli.Context) error {
			if c.IsSet("sandbox") {
				return removeFromSandbox(c, pods)
			}
			return records(c)
		},
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
