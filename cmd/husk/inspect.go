package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/status"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show layer-less images as JSON, with digests, config and references",
		UsageText: "husk inspect REFERENCE|ID",
		Action: onRecords(func(c *cli.Context, _ *node, found status.Match) error {
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
func onRecords(do func(c *cli.Context, n *node, found status.Match) error) cli.ActionFunc {
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

// find returns what name stands for: an image ID or a prefix of one, as images
// prints it; a record's storage ID; or a reference.
func (n *node) find(ctx context.Context, name string) (status.Match, error) {
	if id, err := imageref.ParseImageID(name); err == nil {
		records, err := n.store.ByImageID(ctx, id)
		if !errdefs.Is(err, errdefs.NotFound) {
			return status.Match{Records: records}, err
		}
	}
	if id, err := imageref.ParseStorageID(name); err == nil {
		record, err := n.store.Get(ctx, id)
		return status.Match{Records: []imageref.Record{record}}, err
	}
	if q := status.NewQuery(name, nil); q.IsIDPrefix() {
		records, err := n.store.List(ctx)
		if err != nil {
			return status.Match{}, err
		}
		if match := status.Resolve(records, q); len(match.Records) > 0 {
			return match, nil
		}
	}
	refs, err := n.source.Resolve(ctx, name)
	if err != nil {
		return status.Match{}, err
	}
	var missing error
	for _, ref := range refs {
		record, err := n.store.ByReference(ctx, ref)
		if err == nil {
			return status.Match{Records: []imageref.Record{record}, By: ref}, nil
		}
		if !errdefs.Is(err, errdefs.NotFound) {
			return status.Match{}, err
		}
		missing = errors.Join(missing, err)
	}
	return status.Match{}, missing
}
