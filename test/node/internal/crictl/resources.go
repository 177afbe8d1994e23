package crictl

import (
	"fmt"

	"github.com/urfave/cli/v2"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func updateCommand() *cli.Command {
	return &cli.Command{
		Name: "update", Usage: "change the resources of containers", ArgsUsage: "CONTAINER-ID...", Action: update,
		Flags: []cli.Flag{
			&cli.Int64Flag{Name: "memory", Usage: "bytes"},
			&cli.Int64Flag{Name: "cpu-period", Usage: "microseconds"},
			&cli.Int64Flag{Name: "cpu-quota", Usage: "microseconds"},
			&cli.Int64Flag{Name: "cpu-share"},
			&cli.StringFlag{Name: "cpuset-cpus"},
			&cli.StringFlag{Name: "cpuset-mems"},
		},
	}
}

func update(c *cli.Context) error {
	r, err := runtimeService(parent(c))
	if err != nil {
		return err
	}
	return eachArg(c, "", func(id string) error {
		if err := r.UpdateContainerResources(c.Context, id, &runtimeapi.ContainerResources{
			Linux: &runtimeapi.LinuxContainerResources{
				MemoryLimitInBytes: c.Int64("memory"),
				CpuPeriod:          c.Int64("cpu-period"),
				CpuQuota:           c.Int64("cpu-quota"),
				CpuShares:          c.Int64("cpu-share"),
				CpusetCpus:         c.String("cpuset-cpus"),
				CpusetMems:         c.String("cpuset-mems"),
			},
		}); err != nil {
			return fmt.Errorf("updating container resources for %q: %w", id, err)
		}
		return nil
	})
}

func checkpointCommand() *cli.Command {
	return &cli.Command{
		Name: "checkpoint", Usage: "checkpoint containers", ArgsUsage: "CONTAINER-ID...", Action: checkpoint,
		Flags: []cli.Flag{&cli.StringFlag{Name: "export", Aliases: []string{"e"}, Usage: "file to write the checkpoint to"}},
	}
}

func checkpoint(c *cli.Context) error {
	r, err := runtimeService(parent(c))
	if err != nil {
		return err
	}
	return eachArg(c, "", func(id string) error {
		req := &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: c.String("export")}
		if err := r.CheckpointContainer(c.Context, req); err != nil {
			return fmt.Errorf("checkpointing container %q: %w", id, err)
		}
		return nil
	})
}
