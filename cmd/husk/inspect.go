package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show layer-less images as JSON, with digests, config and references",
		UsageText: "husk inspect REFERENCE|ID",
		Action: onRecords(func(c *cli.Context, _ *node, found imageref.Match) error {
			views := make([]imageView, 0, len(found.Records))
			for _, r := range found.Records {
				v := newImageView(r)
				v.Config = &r.Image
				views = append(views, v)
			}
			return printJSON(c.App.Writer, views)
		}),
	}
}

// onRecords is the action of a command on what its one argument stands for.
func onRecords(do func(c *cli.Context, n *node, found imageref.Match) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		name, err := oneArg(c, "a reference or an image ID")
		if err != nil {
			return err
		}
		n, err := openNode(c)
		if err != nil {
			return err
		}
		found, err := n.find(c.Context, name)
		if err != nil {
			return err
		}
		return do(c, n, found)
	}
}

// find returns what name stands for: an image ID or a prefix of one, a record's
// storage ID, or a reference. Nothing is errdefs.NotFound.
func (n *node) find(ctx context.Context, name string) (imageref.Match, error) {
	q := imageref.NewQuery(name, nil)
	if q.ID.IsZero() {
		refs, err := n.source.Resolve(ctx, name)
		if err != nil && !q.IsIDPrefix() {
			return imageref.Match{}, err
		}
		q = imageref.NewQuery(name, refs)
	}
	records, err := n.store.List(ctx)
	if err != nil {
		return imageref.Match{}, err
	}
	found := imageref.ResolveStored(records, q)
	if len(found.Records) == 0 {
		return imageref.Match{}, errdefs.New(errdefs.NotFound, "no layer-less image by the name "+name, nil)
	}
	return found, nil
}
