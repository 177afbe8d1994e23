package crictl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/gogo/protobuf/jsonpb"
	"github.com/urfave/cli/v2"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func nodeCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "version", Usage: "version of the runtime", Action: version},
		{Name: "info", Usage: "status of the runtime", Action: info, Flags: []cli.Flag{outputFlag("json"), quietFlag()}},
		{
			Name: "stats", Usage: "resource usage of containers", ArgsUsage: "[CONTAINER-ID]", Action: stats,
			Flags: []cli.Flag{
				outputFlag("table"), &cli.StringFlag{Name: "id"}, &cli.StringFlag{Name: "pod", Aliases: []string{"p"}},
				&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also those that do not run (always so here)"},
			},
		},
		{Name: "statsp", Usage: "resource usage of pods", ArgsUsage: "[POD-ID]", Action: statsp, Flags: []cli.Flag{outputFlag("json")}},
		{
			Name: "events", Aliases: []string{"event"}, Usage: "print container events, one JSON object a line, until interrupted",
			Action: events, Flags: []cli.Flag{outputFlag("json")},
		},
	}
}

func version(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	v, err := r.Version(c.Context, "v1")
	if err != nil {
		return fmt.Errorf("version: %w", err)
	}
	return printLines(c, []string{
		"Version:  " + v.GetVersion(), "RuntimeName:  " + v.GetRuntimeName(),
		"RuntimeVersion:  " + v.GetRuntimeVersion(), "RuntimeApiVersion:  " + v.GetRuntimeApiVersion(),
	})
}

func info(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	s, err := r.Status(c.Context, !c.Bool("quiet"))
	if err != nil {
		return fmt.Errorf("runtime status: %w", err)
	}
	if c.Bool("quiet") {
		return printJSON(c, s.GetStatus())
	}
	return printJSON(c, s)
}

func stats(c *cli.Context) error {
	if err := needArgs(c, 0, 1); err != nil {
		return err
	}
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	id := c.String("id")
	if c.NArg() == 1 {
		id = c.Args().First()
	}
	list, err := r.ListContainerStats(c.Context, &runtimeapi.ContainerStatsFilter{Id: id, PodSandboxId: c.String("pod")})
	if err != nil {
		return fmt.Errorf("container stats: %w", err)
	}
	if c.String("output") == "json" {
		return printJSON(c, &runtimeapi.ListContainerStatsResponse{Stats: list})
	}
	rows := [][]string{{"CONTAINER", "NAME", "CPU NANOSECONDS", "MEM", "DISK", "INODES"}}
	for _, s := range list {
		rows = append(rows, []string{
			short(s.GetAttributes().GetId()), s.GetAttributes().GetMetadata().GetName(),
			strconv.FormatUint(s.GetCpu().GetUsageCoreNanoSeconds().GetValue(), 10),
			strconv.FormatUint(s.GetMemory().GetWorkingSetBytes().GetValue(), 10),
			strconv.FormatUint(s.GetWritableLayer().GetUsedBytes().GetValue(), 10),
			strconv.FormatUint(s.GetWritableLayer().GetInodesUsed().GetValue(), 10),
		})
	}
	return printTable(c, rows)
}

func statsp(c *cli.Context) error {
	if err := needArgs(c, 0, 1); err != nil {
		return err
	}
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	list, err := r.ListPodSandboxStats(c.Context, &runtimeapi.PodSandboxStatsFilter{Id: c.Args().First()})
	if err != nil {
		return fmt.Errorf("pod stats: %w", err)
	}
	return printJSON(c, &runtimeapi.ListPodSandboxStatsResponse{Stats: list})
}

func events(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	received := make(chan *runtimeapi.ContainerEventResponse)
	failed := make(chan error, 1)
	go func() { failed <- r.GetContainerEvents(ctx, received, nil) }()
	out := jsonpb.Marshaler{EmitDefaults: true}
	for {
		select {
		case e := <-received:
			s, err := out.MarshalToString(e)
			if err != nil {
				return fmt.Errorf("marshal event: %w", err)
			}
			if err := printLines(c, []string{s}); err != nil {
				return err
			}
		case err := <-failed:
			if ctx.Err() != nil || errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("container events: %w", err)
		}
	}
}
