package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

const memoryPulls = 100

// MemoryResult is resident memory in KiB: VmRSS of /proc/PID/status.
type MemoryResult struct {
	HuskIdle       int64 `json:"husk_serve_idle_kib"`
	HuskAfterPulls int64 `json:"husk_serve_after_100_pulls_kib"`
	ShimPerPod     int64 `json:"shim_per_pod_kib"`
	KeeperPerPod   int64 `json:"keeper_per_pod_kib"`
	Pulls          int   `json:"pulls"`
}

// measureMemory runs first, while husk has done nothing yet.
func measureMemory(ctx context.Context, r *rig.Rig) (any, error) {
	pid, err := r.PID("husk")
	if err != nil {
		return nil, err
	}
	result := MemoryResult{Pulls: memoryPulls}
	if result.HuskIdle, err = residentKiB(pid); err != nil {
		return nil, err
	}
	ref, _, err := r.Push(ctx, "bench/memory", images.Spec{Busybox: images.DefaultBusybox})
	if err != nil {
		return nil, err
	}
	cri, err := dial(r.Node.FrontSocket)
	if err != nil {
		return nil, err
	}
	defer cri.close()
	for range memoryPulls {
		if err := cri.pull(ctx, ref, "husk"); err != nil {
			return nil, err
		}
	}
	if result.HuskAfterPulls, err = residentKiB(pid); err != nil {
		return nil, err
	}
	pod, err := r.RunPod(ctx, "bench-memory", "husk")
	if err != nil {
		return nil, err
	}
	id, err := r.Create(ctx, pod, rig.Container{Name: "c", Image: ref, Asked: ref, Args: []string{"/bin/sleep", "1000"}})
	if err != nil {
		return nil, err
	}
	if _, err := r.Crictl(ctx, "start", id); err != nil {
		return nil, err
	}
	for program, kib := range map[string]*int64{
		"containerd-shim-husk-v2": &result.ShimPerPod, "husk-keeper": &result.KeeperPerPod,
	} {
		pid, err := processOf(program, pod.ID)
		if err != nil {
			return nil, err
		}
		if *kib, err = residentKiB(pid); err != nil {
			return nil, err
		}
	}
	if _, err := r.Crictl(ctx, "stopp", pod.ID); err != nil {
		return nil, err
	}
	_, err = r.Crictl(ctx, "rmp", pod.ID)
	return result, err
}

func residentKiB(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		if value, ok := strings.CutPrefix(scan.Text(), "VmRSS:"); ok {
			return strconv.ParseInt(strings.Fields(value)[0], 10, 64)
		}
	}
	return 0, errors.Join(scan.Err(), fmt.Errorf("process %d has no VmRSS", pid))
}

// processOf finds a pod's process by its command line.
func processOf(program, pod string) (int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range lines {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // gone since it was listed
		}
		name, args, _ := strings.Cut(string(data), "\x00")
		if filepath.Base(name) == program && strings.Contains(args, pod) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("no %s runs for pod %s", program, pod)
}
