package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func rmCommand() *cli.Command {
	return &cli.Command{
		Name:  "rm",
		Usage: "remove a layer-less image: by ID with all its references, by reference only that one",
		Description: "An image that a container was made from is not removed. " +
			"Ordinary images are CRI-O's; use crictl rmi for them.",
		UsageText: "husk rm REFERENCE|ID",
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "a reference or an image ID")
			if err != nil {
				return err
			}
			n, err := openNode(c)
			if err != nil {
				return err
			}
			if err := n.remove(c, name); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, name)
			return err
		},
	}
}

func (n *node) remove(c *cli.Context, name string) error {
	found, err := n.find(c.Context, name)
	if err != nil {
		return err
	}
	if !found.By.IsZero() {
		return n.store.RemoveReference(c.Context, found.By)
	}
	for _, r := range found.Records {
		if err := n.store.Remove(c.Context, r.StorageID); err != nil {
			return err
		}
	}
	return nil
}
