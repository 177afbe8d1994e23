package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show layer-less images as JSON, with digests, config and references",
		ArgsUsage: "REFERENCE|ID",
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "a reference or an image ID")
			if err != nil {
				return err
			}
			n, err := openNode(c)
			if err != nil {
				return err
			}
			records, err := n.find(c.Context, name)
			if err != nil {
				return err
			}
			views := make([]imageView, 0, len(records))
			for _, r := range records {
				v := newImageView(r)
				v.Config = &r.Image
				views = append(views, v)
			}
			return printJSON(c.App.Writer, views)
		},
	}
}

// find returns the records that name stands for: an image ID, a record's storage
// ID, or a reference.
func (n *node) find(ctx context.Context, name string) ([]imageref.Record, error) {
	if id, err := imageref.ParseImageID(name); err == nil {
		records, err := n.store.ByImageID(ctx, id)
		if !errdefs.Is(err, errdefs.NotFound) {
			return records, err
		}
	}
	if id, err := imageref.ParseStorageID(name); err == nil {
		record, err := n.store.Get(ctx, id)
		return []imageref.Record{record}, err
	}
	refs, err := n.source.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	var missing error
	for _, ref := range refs {
		record, err := n.store.ByReference(ctx, ref)
		if err == nil {
			return []imageref.Record{record}, nil
		}
		if !errdefs.Is(err, errdefs.NotFound) {
			return nil, err
		}
		missing = errors.Join(missing, err)
	}
	return nil, missing
}
