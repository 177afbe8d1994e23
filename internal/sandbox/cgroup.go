package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
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

// ParentCgroup returns the cgroup, "/a/b", that a cgroup_parent of the CRI names:
// a slice ("a-b.slice", systemd) or a path (cgroupfs; also the full path of a slice).
func ParentCgroup(parent string) (string, error) {
	if strings.HasSuffix(parent, sliceSuffix) && !strings.Contains(parent, "/") {
		return slicePath(parent)
	}
	return path.Join("/", parent), nil
}

// Join moves a process into a cgroup, in every hierarchy, and makes the group if it
// is not there. leave removes the group once it is empty.
//
// What the process wrote to a tmpfs stays charged to the group around it: the kernel
// charges the pages of a removed group to its parent.
func Join(group string, pid int) (leave func() error, err error) {
	add, leave, err := openCgroup(group)
	if err != nil {
		return nil, err
	}
	if err := add(pid); err != nil {
		// The group may be new and is of no use then; one that others are in stays.
		_ = leave()
		return nil, fmt.Errorf("join cgroup %s: %w", group, err)
	}
	return leave, nil
}

// MakeCgroup makes a cgroup, in every hierarchy, if it is not there.
func MakeCgroup(group string) error {
	_, _, err := openCgroup(group)
	return err
}

// openCgroup makes a cgroup if it is not there. add moves a process into it, and
// drop removes it once it is empty.
func openCgroup(group string) (add func(pid int) error, drop func() error, err error) {
	if cgroups.Mode() == cgroups.Unified {
		m, err := cgroup2.NewManager(unifiedMount, group, &cgroup2.Resources{})
		if err != nil {
			return nil, nil, fmt.Errorf("create cgroup %s: %w", group, err)
		}
		return func(pid int) error { return m.AddProc(uint64(pid)) }, m.Delete, nil
	}
	cg, err := cgroup1.New(cgroup1.StaticPath(group), &rspec.LinuxResources{})
	if err != nil {
		return nil, nil, fmt.Errorf("create cgroup %s: %w", group, err)
	}
	return func(pid int) error { return cg.AddProc(uint64(pid)) }, cg.Delete, nil
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

// HasCgroup reports whether there is such a group, in any hierarchy.
func HasCgroup(group string) (bool, error) {
	if cgroups.Mode() == cgroups.Unified {
		_, err := os.Stat(path.Join(unifiedMount, group))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	_, err := cgroup1.Load(cgroup1.StaticPath(group))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return false, nil
	}
	return err == nil, err
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
