// Package metrics proves that CRI-O reads the metrics that a shim answers. Its modules are other ones than the shim's:
// gogo's protobuf and the first typeurl on one side, Google's and the second on the other.
package metrics

import (
	"testing"

	read1 "github.com/containerd/cgroups/stats/v1"
	read2 "github.com/containerd/cgroups/v2/stats"
	write1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	write2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/protobuf"
	"github.com/containerd/typeurl"
	typeurl2 "github.com/containerd/typeurl/v2"
)

// pass is the way of the metrics: containerd's Stats in the shim, then CRI-O's ContainerStats (runtime_vm.go).
func pass(t *testing.T, metrics any) any {
	t.Helper()
	data, err := typeurl2.MarshalAny(metrics)
	if err != nil {
		t.Fatal(err)
	}
	got, err := typeurl.UnmarshalAny(protobuf.FromAny(data))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCgroupV1(t *testing.T) {
	t.Parallel()
	got, ok := pass(t, &write1.Metrics{
		CPU:    &write1.CPUStat{Usage: &write1.CPUUsage{Total: 1}},
		Memory: &write1.MemoryStat{Usage: &write1.MemoryEntry{Usage: 2, Limit: 3}, RSS: 4},
		Pids:   &write1.PidsStat{Current: 5},
	}).(*read1.Metrics)
	if !ok || got.CPU.Usage.Total != 1 || got.Memory.Usage.Usage != 2 || got.Memory.Usage.Limit != 3 || got.Memory.RSS != 4 || got.Pids.Current != 5 {
		t.Errorf("CRI-O reads %T %v", got, got)
	}
}

func TestCgroupV2(t *testing.T) {
	t.Parallel()
	got, ok := pass(t, &write2.Metrics{
		CPU:    &write2.CPUStat{UsageUsec: 1, SystemUsec: 2},
		Memory: &write2.MemoryStat{Usage: 3, UsageLimit: 4, Anon: 5, InactiveFile: 6},
		Pids:   &write2.PidsStat{Current: 7, Limit: 8},
	}).(*read2.Metrics)
	if !ok || got.CPU.UsageUsec != 1 || got.CPU.SystemUsec != 2 || got.Memory.Usage != 3 || got.Memory.UsageLimit != 4 ||
		got.Memory.Anon != 5 || got.Memory.InactiveFile != 6 || got.Pids.Current != 7 || got.Pids.Limit != 8 {
		t.Errorf("CRI-O reads %T %v", got, got)
	}
}
