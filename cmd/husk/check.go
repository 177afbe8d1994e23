package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "look for damaged, left-over and unused records, and repair them",
		UsageText: "husk check [--repair] [--format text|json|TEMPLATE]",
		Description: "It looks at every layer-less image in CRI-O's storage and at what a crash left there, and changes " +
			"nothing unless --repair is given. Records are unused after record_ttl of husk.toml, if that is set. " +
			"husk serve does the same when it starts; both may run at once, and CRI-O too.\n\n" +
			"Exit codes: 0 nothing is wrong, or all of it was repaired; 1 something is left. " +
			"A record of another version of husk is never touched, and always left.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "mend or remove what is found"},
			formatFlag(formatText),
		},
		Before: noArgs,
		Action: check,
	}
}

func check(c *cli.Context) error {
	n, err := openNode(c)
	if err != nil {
		return err
	}
	repair := c.Bool("repair")
	report, err := n.store.Check(c.Context, cstore.CheckOptions{Repair: repair, TTL: n.Config.RecordTTL.Duration})
	if err != nil {
		return err
	}
	if err := show(c, report, func(w io.Writer) error { return printReport(w, report) }); err != nil {
		return err
	}
	left := report.Left()
	switch {
	case left == 0:
		return nil
	case repair:
		return errdefs.Newf(errdefs.Internal, "check", "%d of %d findings could not be repaired", left, len(report.Findings))
	default:
		return errdefs.Newf(errdefs.Internal, "check", "findings: %d; husk check --repair repairs what can be", left)
	}
}

// printReport prints one line for each finding, with its reason below.
func printReport(w io.Writer, report cstore.Report) error {
	if len(report.Findings) == 0 {
		_, err := fmt.Fprintf(w, "records: %d, nothing is wrong\n", report.Records)
		return err
	}
	rows := make([][]string, 0, len(report.Findings))
	for _, f := range report.Findings {
		references := strings.Join(f.References, ",")
		if references == "" {
			references = "-"
		}
		rows = append(rows, []string{string(f.Kind), string(f.Done), fmt.Sprintf("%.12s", f.Record), references, f.Detail})
	}
	return printTable(w, []string{"FINDING", "DONE", "RECORD", "REFERENCES", "DETAIL"}, rows)
}
