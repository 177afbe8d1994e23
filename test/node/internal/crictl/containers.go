package crictl

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	v1 "k8s.io/api/core/v1"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
)

func containerCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "create", Usage: "create a container", ArgsUsage: "POD CONTAINER-CONFIG POD-CONFIG", Action: create},
		{Name: "start", Usage: "start containers", ArgsUsage: "CONTAINER-ID...", Action: start},
		{
			Name: "stop", Usage: "stop containers", ArgsUsage: "CONTAINER-ID...", Action: stop,
			Flags: []cli.Flag{&cli.Int64Flag{Name: "timeout", Aliases: []string{"t"}, Usage: "seconds to wait before the kill"}},
		},
		{
			Name: "rm", Usage: "remove containers", ArgsUsage: "CONTAINER-ID...", Action: rm,
			Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "stop the container first"}},
		},
		{
			Name: "ps", Usage: "list containers", Action: ps,
			Flags: []cli.Flag{
				outputFlag("table"), quietFlag(),
				&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also those that do not run"},
				&cli.StringFlag{Name: "id", Usage: "filter by container ID"},
				&cli.StringFlag{Name: "pod", Aliases: []string{"p"}, Usage: "filter by pod ID"},
				&cli.StringFlag{Name: "name", Usage: "filter by name"},
				&cli.StringFlag{Name: "state", Aliases: []string{"s"}, Usage: "filter by state: created, running, exited, unknown"},
				&cli.StringSliceFlag{Name: "label", Usage: "filter by key=value"},
			},
		},
		{
			Name: "inspect", Usage: "status of containers", ArgsUsage: "CONTAINER-ID...", Action: inspect,
			Flags: []cli.Flag{outputFlag("json")},
		},
		{
			Name: "logs", Usage: "log of a container", ArgsUsage: "CONTAINER-ID", Action: containerLogs,
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}},
				&cli.Int64Flag{Name: "tail", Value: -1, Usage: "number of lines from the end; -1: all"},
				&cli.BoolFlag{Name: "timestamps", Aliases: []string{"t"}},
			},
		},
		execCommand(),
		attachCommand(),
		updateCommand(),
		checkpointCommand(),
	}
}

func create(c *cli.Context) error {
	if err := needArgs(c, 3, 3); err != nil {
		return err
	}
	var ctr runtimeapi.ContainerConfig
	if err := readConfig(c.Args().Get(1), &ctr); err != nil {
		return err
	}
	pod, err := podConfig(c.Args().Get(2))
	if err != nil {
		return err
	}
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	if i := ctr.GetImage(); i != nil && i.UserSpecifiedImage == "" {
		i.UserSpecifiedImage = i.Image // as crictl does; kubelet sends the ID and the reference
	}
	id, err := r.CreateContainer(c.Context, c.Args().First(), &ctr, pod)
	if err != nil {
		return fmt.Errorf("creating container: %w", err)
	}
	return printLines(c, []string{id})
}

func start(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	return eachArg(c, "", func(id string) error {
		if err := r.StartContainer(c.Context, id); err != nil {
			return fmt.Errorf("starting container %s: %w", id, err)
		}
		return nil
	})
}

func stop(c *cli.Context) error {
	// The global --timeout has the same name: the connection's is the parent's.
	r, err := runtimeService(parent(c))
	if err != nil {
		return err
	}
	return eachArg(c, "", func(id string) error {
		if err := r.StopContainer(c.Context, id, c.Int64("timeout")); err != nil {
			return fmt.Errorf("stopping container %s: %w", id, err)
		}
		return nil
	})
}

// parent is the context of the command line before the subcommand.
func parent(c *cli.Context) *cli.Context {
	return c.Lineage()[1]
}

func rm(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	return eachArg(c, "", func(id string) error {
		if c.Bool("force") {
			if err := r.StopContainer(c.Context, id, 0); err != nil {
				return fmt.Errorf("stopping container %s: %w", id, err)
			}
		}
		if err := r.RemoveContainer(c.Context, id); err != nil {
			return fmt.Errorf("removing container %s: %w", id, err)
		}
		return nil
	})
}

func stateName(s runtimeapi.ContainerState) string {
	n := strings.TrimPrefix(s.String(), "CONTAINER_")
	return n[:1] + strings.ToLower(n[1:])
}

func containerFilter(c *cli.Context) (*runtimeapi.ContainerFilter, error) {
	labels, err := keyValues(c.StringSlice("label"))
	if err != nil {
		return nil, err
	}
	f := &runtimeapi.ContainerFilter{Id: c.String("id"), PodSandboxId: c.String("pod"), LabelSelector: labels}
	state := c.String("state")
	if state == "" {
		if !c.Bool("all") {
			f.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
		}
		return f, nil
	}
	v, ok := runtimeapi.ContainerState_value["CONTAINER_"+strings.ToUpper(state)]
	if !ok {
		return nil, fmt.Errorf("unknown container state %q", state)
	}
	f.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState(v)}
	return f, nil
}

func listContainers(c *cli.Context, r internalapi.RuntimeService) ([]*runtimeapi.Container, error) {
	filter, err := containerFilter(c)
	if err != nil {
		return nil, err
	}
	all, err := r.ListContainers(c.Context, filter)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	kept := make([]*runtimeapi.Container, 0, len(all))
	for _, ctr := range all {
		if strings.Contains(ctr.GetMetadata().GetName(), c.String("name")) {
			kept = append(kept, ctr)
		}
	}
	return kept, nil
}

func ps(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	list, err := listContainers(c, r)
	if err != nil {
		return err
	}
	if c.Bool("quiet") {
		return printIDs(c, list)
	}
	if c.String("output") == "json" {
		return printJSON(c, &runtimeapi.ListContainersResponse{Containers: list})
	}
	rows := [][]string{{"CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID"}}
	for _, ctr := range list {
		m := ctr.GetMetadata()
		rows = append(rows, []string{
			short(ctr.GetId()), short(ctr.GetImage().GetImage()), ago(ctr.GetCreatedAt()), stateName(ctr.GetState()),
			m.GetName(), strconv.FormatUint(uint64(m.GetAttempt()), 10), short(ctr.GetPodSandboxId()),
		})
	}
	return printTable(c, rows)
}

func inspect(c *cli.Context) error {
	if err := needArgs(c, 1, -1); err != nil {
		return err
	}
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	for _, id := range c.Args().Slice() {
		s, err := r.ContainerStatus(c.Context, id, true)
		if err != nil {
			return fmt.Errorf("container status %s: %w", id, err)
		}
		if err := printStatus(c, s.GetStatus(), s.GetInfo()); err != nil {
			return err
		}
	}
	return nil
}

func containerLogs(c *cli.Context) error {
	if err := needArgs(c, 1, 1); err != nil {
		return err
	}
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	id := c.Args().First()
	s, err := r.ContainerStatus(c.Context, id, false)
	if err != nil {
		return fmt.Errorf("container status %s: %w", id, err)
	}
	path := s.GetStatus().GetLogPath()
	if path == "" {
		return fmt.Errorf("the container %s has no log path", id)
	}
	opts := &v1.PodLogOptions{Follow: c.Bool("follow"), Timestamps: c.Bool("timestamps")}
	if n := c.Int64("tail"); n >= 0 {
		opts.TailLines = &n
	}
	err = logs.ReadLogs(c.Context, nil, path, s.GetStatus().GetId(), logs.NewLogOptions(opts, time.Now()), r, c.App.Writer, c.App.ErrWriter)
	if err != nil {
		return fmt.Errorf("read log of %s: %w", id, err)
	}
	return nil
}
