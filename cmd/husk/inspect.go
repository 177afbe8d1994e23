package main

import (
	"context"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/layout"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:        "inspect",
		Usage:       "show layer-less images as JSON, with digests, config and references",
		UsageText:   "husk inspect [--format json|TEMPLATE] REFERENCE|ID|oci:PATH[:TAG]|oci-archive:FILE[:TAG]|dir:PATH",
		Description: "An image in a local directory or file is read and checked as a pull does, and not stored.",
		Flags:       []cli.Flag{formatFlag(formatJSON)},
		Action: onRecords(func(c *cli.Context, _ *node, found imageref.Match) error {
			views := make([]imageView, 0, len(found.Records))
			for _, r := range found.Records {
				v := newImageView(r)
				v.Config = &r.Image
				views = append(views, v)
			}
			return show(c, views, func(w io.Writer) error { return printJSON(w, views) })
		}, (*node).findOrRead),
	}
}

// findOrRead is find, and for an image in a local layout what it would be stored as; that
// needs no storage.
func (n *node) findOrRead(ctx context.Context, name string) (imageref.Match, error) {
	if !layout.Is(name) {
		return n.find(ctx, name)
	}
	source, err := n.sourceOf(name)
	if err != nil {
		return imageref.Match{}, err
	}
	img, _, err := manifestonly.Fetch(ctx, manifestonly.Request{Name: name}, source, nil)
	if err != nil {
		return imageref.Match{}, err
	}
	return imageref.Match{Records: []imageref.Record{img.Record()}}, nil
}

// onRecords is the action of a command on what its one argument stands for, by find.
func onRecords(
	do func(c *cli.Context, n *node, found imageref.Match) error,
	find func(n *node, ctx context.Context, name string) (imageref.Match, error),
) cli.ActionFunc {
	return func(c *cli.Context) error {
		name, err := oneArg(c, "a reference or an image ID")
		if err != nil {
			return err
		}
		n, err := readNode(c)
		if err != nil {
			return err
		}
		found, err := find(n, c.Context, name)
		if err != nil {
			return err
		}
		return do(c, n, found)
	}
}

// find opens the store and returns what name stands for there: an image ID or a prefix of
// one, a record's storage ID, or a reference. Nothing is errdefs.NotFound.
func (n *node) find(ctx context.Context, name string) (imageref.Match, error) {
	if err := n.look(); err != nil {
		return imageref.Match{}, err
	}
	q := imageref.NewQuery(name, nil)
	if q.ID.IsZero() {
		refs, err := n.Source.Resolve(ctx, name)
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
