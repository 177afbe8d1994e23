package podpull

import (
	"encoding/json"
	"fmt"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// Place is where a child fetches: the network namespace, resolv.conf and cgroup of a
// pod. The zero value is where the daemon is. Two pulls may share one fetch only if
// their places are equal.
type Place = sandbox.Place

const (
	// crioHostNetwork is CRI-O's word on whether a pod is in the host's network.
	crioHostNetwork = "io.kubernetes.cri-o.HostNetwork"
	// podCgroup in separate_pull_cgroup is the cgroup_parent of the pod, as in CRI-O.
	podCgroup = "pod"
)

// FromRuntimeSpec returns the place of a pod from what CRI-O answers, under the key
// "info", to PodSandboxStatus with verbose set. CRI-O gives a pod in the host's
// network a path of that very namespace; a pod without one is taken to be there only
// if CRI-O says so too.
func FromRuntimeSpec(info []byte) (Place, error) {
	const op = "find the network of a pod"
	var verbose struct {
		RuntimeSpec *rspec.Spec `json:"runtimeSpec"`
	}
	if err := json.Unmarshal(info, &verbose); err != nil {
		return Place{}, errdefs.Newf(errdefs.Internal, op, "read CRI-O's verbose status: %w", err)
	}
	spec := verbose.RuntimeSpec
	if spec == nil || spec.Linux == nil {
		return Place{}, errdefs.Newf(errdefs.Internal, op, "CRI-O's verbose status has no runtime spec")
	}
	place, err := sandbox.PlaceOf(spec)
	if err != nil {
		return Place{}, err
	}
	if place.NetNS == "" && spec.Annotations[crioHostNetwork] != "true" {
		return Place{}, errdefs.Newf(errdefs.Internal, op, "the pod has no network namespace, and is not in the host's network")
	}
	return place, nil
}

// SeparateCgroup returns the cgroup for pulls that crio.conf's separate_pull_cgroup
// asks for: "" (none) for "", the pod's for "pod", where cgroupParent is that of the
// request's sandbox_config, else the slice that is named.
//
// CRI-O takes the setting only with the systemd cgroup manager; here it holds with
// both, because the child's group is made in the cgroup file system itself. A pod
// that names no parent has no group to charge: "" then.
func SeparateCgroup(setting, cgroupParent string) (string, error) {
	const op = "read separate_pull_cgroup"
	switch {
	case setting == "", setting == podCgroup && cgroupParent == "":
		return "", nil
	case setting == podCgroup:
		return sandbox.ParentCgroup(cgroupParent)
	case !strings.Contains(setting, ".slice"):
		return "", errdefs.Newf(errdefs.InvalidArgument, op, "%q is neither %q nor a slice", setting, podCgroup)
	}
	group, err := sandbox.ParentCgroup(setting)
	if err != nil {
		return "", err
	}
	// systemd would make it for CRI-O's scope.
	if err := sandbox.MakeCgroup(group); err != nil {
		return "", errdefs.New(errdefs.Internal, op, err)
	}
	return group, nil
}

// checkCgroup refuses a group that is gone, such as that of a pod that has ended: to
// make it again would leave it behind.
func checkCgroup(group string) error {
	if group == "" {
		return nil
	}
	there, err := sandbox.HasCgroup(group)
	if err != nil {
		return fmt.Errorf("find cgroup %s: %w", group, err)
	}
	if !there {
		return fmt.Errorf("the cgroup %s does not exist", group)
	}
	return nil
}
