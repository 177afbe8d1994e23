package crictl

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "runp", Usage: "run a new pod", ArgsUsage: "POD-CONFIG", Action: runp,
			Flags: []cli.Flag{&cli.StringFlag{Name: "runtime", Aliases: []string{"r"}, Usage: "runtime handler"}},
		},
		{Name: "stopp", Usage: "stop pods", ArgsUsage: "POD-ID...", Action: stopp},
		{
			Name: "rmp", Usage: "remove pods", ArgsUsage: "POD-ID...", Action: rmp,
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "stop the pod first"},
				&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all pods"},
			},
		},
		{
			Name: "pods", Usage: "list pods", Action: pods,
			Flags: []cli.Flag{
				outputFlag("table"), quietFlag(),
				&cli.StringFlag{Name: "id", Usage: "filter by pod ID"},
				&cli.StringFlag{Name: "name", Usage: "filter by pod name"},
				&cli.StringFlag{Name: "namespace", Usage: "filter by namespace"},
				&cli.StringFlag{Name: "state", Aliases: []string{"s"}, Usage: "filter by state: ready or notready"},
				&cli.StringSliceFlag{Name: "label", Usage: "filter by key=value"},
			},
		},
		{
			Name: "inspectp", Usage: "status of pods", ArgsUsage: "POD-ID...", Action: inspectp,
			Flags: []cli.Flag{outputFlag("json")},
		},
	}
}

func runp(c *cli.Context) error {
	if err := needArgs(c, 1, 1); err != nil {
		return err
	}
	pod, err := podConfig(c.Args().First())
	if err != nil {
		return err
	}
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	id, err := r.RunPodSandbox(c.Context, pod, c.String("runtime"))
	if err != nil {
		return fmt.Errorf("run pod sandbox: %w", err)
	}
	return printLines(c, []string{id})
}

func stopp(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	return eachArg(c, "Stopped sandbox", func(id string) error {
		if err := r.StopPodSandbox(c.Context, id); err != nil {
			return fmt.Errorf("stop pod sandbox %s: %w", id, err)
		}
		return nil
	})
}

func rmp(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	remove := func(id string) error {
		if c.Bool("force") {
			if err := r.StopPodSandbox(c.Context, id); err != nil {
				return fmt.Errorf("stop pod sandbox %s: %w", id, err)
			}
		}
		if err := r.RemovePodSandbox(c.Context, id); err != nil {
			return fmt.Errorf("remove pod sandbox %s: %w", id, err)
		}
		return nil
	}
	if !c.Bool("all") {
		return eachArg(c, "Removed sandbox", remove)
	}
	list, err := r.ListPodSandbox(c.Context, nil)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, p := range list {
		if err := remove(p.GetId()); err != nil {
			return err
		}
	}
	return nil
}

func podFilter(c *cli.Context) (*runtimeapi.PodSandboxFilter, error) {
	labels, err := keyValues(c.StringSlice("label"))
	if err != nil {
		return nil, err
	}
	f := &runtimeapi.PodSandboxFilter{Id: c.String("id"), LabelSelector: labels}
	switch s := strings.ToLower(c.String("state")); s {
	case "":
	case "ready":
		f.State = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	case "notready":
		f.State = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	default:
		return nil, fmt.Errorf("unknown pod state %q", s)
	}
	return f, nil
}

func listPods(c *cli.Context, r internalapi.RuntimeService) ([]*runtimeapi.PodSandbox, error) {
	filter, err := podFilter(c)
	if err != nil {
		return nil, err
	}
	all, err := r.ListPodSandbox(c.Context, filter)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	kept := make([]*runtimeapi.PodSandbox, 0, len(all))
	for _, p := range all {
		if strings.Contains(p.GetMetadata().GetName(), c.String("name")) &&
			strings.Contains(p.GetMetadata().GetNamespace(), c.String("namespace")) {
			kept = append(kept, p)
		}
	}
	return kept, nil
}

func pods(c *cli.Context) error {
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	list, err := listPods(c, r)
	if err != nil {
		return err
	}
	if c.Bool("quiet") {
		return printIDs(c, list)
	}
	if c.String("output") == "json" {
		return printJSON(c, &runtimeapi.ListPodSandboxResponse{Items: list})
	}
	rows := [][]string{{"POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"}}
	for _, p := range list {
		m := p.GetMetadata()
		state := map[bool]string{true: "Ready", false: "NotReady"}[p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY]
		handler := p.GetRuntimeHandler()
		if handler == "" {
			handler = "(default)"
		}
		rows = append(rows, []string{
			short(p.GetId()), ago(p.GetCreatedAt()), state, m.GetName(), m.GetNamespace(),
			strconv.FormatUint(uint64(m.GetAttempt()), 10), handler,
		})
	}
	return printTable(c, rows)
}

func inspectp(c *cli.Context) error {
	if err := needArgs(c, 1, -1); err != nil {
		return err
	}
	r, err := runtimeService(c)
	if err != nil {
		return err
	}
	for _, id := range c.Args().Slice() {
		s, err := r.PodSandboxStatus(c.Context, id, true)
		if err != nil {
			return fmt.Errorf("pod status %s: %w", id, err)
		}
		if err := printStatus(c, s.GetStatus(), s.GetInfo()); err != nil {
			return err
		}
	}
	return nil
}
