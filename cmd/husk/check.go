package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "look for damaged, left-over and unused records, and repair them",
		UsageText: "husk check [--repair] [--format text|json|TEMPLATE]",
		Description: "It looks at every layer-less image in CRI-O's storage, at the containers of husk run, and at what a crash left there, and changes " +
			"nothing unless --repair is given. Records are unused after record_ttl of husk.toml, if that is set. " +
			"husk serve does the same when it starts; both may run at once, and CRI-O too.\n\n" +
			"Exit codes: 0 nothing is wrong, or all of it was repaired; 1 something is left. " +
			"A record of another version of husk is never touched, and always left; a damaged container is left for husk rm.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "mend or remove what is found"},
			formatFlag(formatText),
		},
		Before: noArgs,
		Action: check,
	}
}

// findings are all that check looks at.
type findings struct {
	cstore.Report
	// Containers are what is wrong with the containers of husk run.
	Containers []bundles.Finding `json:"containers"`
}

func check(c *cli.Context) error {
	n, err := openNode(c)
	if err != nil {
		return err
	}
	repair := c.Bool("repair")
	var found findings
	found.Report, err = n.store.Check(c.Context, cstore.CheckOptions{Repair: repair, TTL: n.Config.RecordTTL.Duration})
	if err != nil {
		return err
	}
	if found.Containers, err = checkContainers(c.Context, n, repair); err != nil {
		return err
	}
	if err := show(c, found, func(w io.Writer) error { return printFindings(w, found) }); err != nil {
		return err
	}
	left := found.Left() + len(found.Containers)
	switch {
	case left == 0:
		return nil
	case repair:
		return errdefs.Newf(errdefs.Internal, "check", "%d of %d findings could not be repaired", left, len(found.Findings)+len(found.Containers))
	default:
		return errdefs.Newf(errdefs.Internal, "check", "findings: %d; husk check --repair repairs what can be", left)
	}
}

// checkContainers finds what is wrong with containers. Only what a killed husk had not
// finished is repaired: to remove a container that somebody made is for them to say.
func checkContainers(ctx context.Context, n *node, repair bool) ([]bundles.Finding, error) {
	store, err := bundles.Open(bundles.Options(n.StoreOptions()))
	if err != nil {
		return nil, err
	}
	if repair {
		if _, err := store.Sweep(ctx); err != nil {
			return nil, err
		}
	}
	return store.Check(ctx)
}

// printFindings prints one line for each finding, with its reason below.
func printFindings(w io.Writer, found findings) error {
	if len(found.Findings)+len(found.Containers) == 0 {
		_, err := fmt.Fprintf(w, "records: %d, nothing is wrong\n", found.Records)
		return err
	}
	rows := make([][]string, 0, len(found.Findings)+len(found.Containers))
	for _, f := range found.Findings {
		references := strings.Join(f.References, ",")
		rows = append(rows, []string{string(f.Kind), string(f.Done), fmt.Sprintf("%.12s", f.Record), cmp.Or(references, "-"), f.Detail})
	}
	for _, f := range found.Containers {
		rows = append(rows, []string{string(f.Kind), string(cstore.Left), fmt.Sprintf("%.12s", f.ID), cmp.Or(f.Name, "-"), f.Detail + " (husk rm --container)"})
	}
	return printTable(w, []string{"FINDING", "DONE", "RECORD", "NAME", "DETAIL"}, rows)
}
