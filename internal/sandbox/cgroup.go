package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// unifiedMount is where every distribution mounts cgroup v2.
	unifiedMount = "/sys/fs/cgroup"
	// groupPrefix starts the name of the group that a child of a pod runs in.
	groupPrefix = "husk-"
	sliceSuffix = ".slice"
	// dyingTime is how long a killed pull may take to die: the kernel frees its
	// memory first. dyingPoll is how often it is looked for.
	dyingTime = 5 * time.Second
	dyingPoll = 10 * time.Millisecond
)

// PodCgroup returns the cgroup of the pod, "/a/b", that a container's
// linux.cgroupsPath lies in. Both forms are known: a path (cgroupfs) and
// "slice:prefix:name" (systemd).
func PodCgroup(cgroupsPath string) (string, error) {
	if !strings.Contains(cgroupsPath, ":") {
		return path.Dir(path.Join("/", cgroupsPath)), nil
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 {
		return "", errdefs.Newf(errdefs.InvalidArgument, "linux.cgroupsPath", "%q is not slice:prefix:name", cgroupsPath)
	}
	return slicePath(parts[0])
}

// slicePath expands a slice as systemd does: "a-b.slice" lies in "a.slice"
// (systemd.slice(5)).
func slicePath(slice string) (string, error) {
	if slice == "" || slice == "-.slice" {
		return "/", nil
	}
	name, ok := strings.CutSuffix(slice, sliceSuffix)
	if !ok || strings.Contains(slice, "/") {
		return "", errdefs.Newf(errdefs.InvalidArgument, "linux.cgroupsPath", "%q is not a slice", slice)
	}
	var full, prefix string
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", errdefs.Newf(errdefs.InvalidArgument, "linux.cgroupsPath", "%q is not a slice", slice)
		}
		full += "/" + prefix + part + sliceSuffix
		prefix += part + "-"
	}
	return full, nil
}

// joinPod moves a process into a group of its own beside the pod's containers,
// so that what it uses is the pod's and it has a fair share. name is unique in
// the pod. leave removes the group; the process must be gone.
//
// What the process wrote to a tmpfs stays charged to the pod: the kernel charges
// the pages of a removed group to its parent.
func joinPod(cgroupsPath, name string, pid int) (leave func() error, err error) {
	pod, err := PodCgroup(cgroupsPath)
	if err != nil {
		return nil, err
	}
	return Join(path.Join(pod, groupPrefix+name), pid)
}

// Join moves a process into a cgroup, in every hierarchy, and makes the group if it
// is not there. leave removes the group once it is empty.
func Join(group string, pid int) (leave func() error, err error) {
	var join func() error
	if cgroups.Mode() == cgroups.Unified {
		m, err := cgroup2.NewManager(unifiedMount, group, &cgroup2.Resources{})
		if err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", group, err)
		}
		join, leave = func() error { return m.AddProc(uint64(pid)) }, m.Delete
	} else {
		cg, err := cgroup1.New(cgroup1.StaticPath(group), &rspec.LinuxResources{})
		if err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", group, err)
		}
		join, leave = func() error { return cg.AddProc(uint64(pid)) }, cg.Delete
	}
	if err := join(); err != nil {
		// The group may be new and is of no use then; one that others are in stays.
		_ = leave()
		return nil, fmt.Errorf("join cgroup %s: %w", group, err)
	}
	return leave, nil
}

// RemoveCgroup removes the group that a killed pull of the named container left
// behind, as soon as the pull is dead. A group that is not there is no error.
func RemoveCgroup(ctx context.Context, cgroupsPath, name string) error {
	pod, err := PodCgroup(cgroupsPath)
	if err != nil {
		return err
	}
	group := path.Join(pod, groupPrefix+name)
	for deadline := time.Now().Add(dyingTime); ; {
		err := remove(group)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", group, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", group, errors.Join(ctx.Err(), err))
		case <-time.After(dyingPoll):
		}
	}
}

func remove(group string) error {
	if cgroups.Mode() == cgroups.Unified {
		m, err := cgroup2.Load(group)
		if err != nil {
			return err
		}
		return m.Delete()
	}
	cg, err := cgroup1.Load(cgroup1.StaticPath(group))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return nil
	}
	if err != nil {
		return err
	}
	return cg.Delete()
}
