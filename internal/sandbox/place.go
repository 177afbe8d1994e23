package sandbox

import (
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Place is where a child runs. The zero value is where its parent is. Two children
// see the same network and are charged to the same group exactly if their places
// are equal.
type Place struct {
	// NetNS is the path of the pod's network namespace; empty is the caller's own.
	NetNS string
	// ResolvConf is a file that takes the place of /etc/resolv.conf; empty leaves
	// the host's.
	ResolvConf string
	// Cgroup is the group, "/a/b", in which the child gets one of its own; empty
	// leaves the child in the caller's.
	Cgroup string
}

// PlaceOf returns the place of the container with this spec. One without a network
// namespace is in the host's network. A network namespace without a path, which is
// not there yet, is errdefs.Unsupported: in the host's instead, a registry would see
// the wrong address.
func PlaceOf(spec *rspec.Spec) (Place, error) {
	place := Place{ResolvConf: resolvConf(spec)}
	if spec.Linux == nil {
		return place, nil
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type != rspec.NetworkNamespace {
			continue
		}
		if ns.Path == "" {
			return Place{}, errdefs.Newf(errdefs.Unsupported, "find the pod's network", "the network namespace has no path")
		}
		place.NetNS = ns.Path
	}
	if spec.Linux.CgroupsPath == "" {
		return place, nil
	}
	group, err := PodCgroup(spec.Linux.CgroupsPath)
	if err != nil {
		return Place{}, err
	}
	place.Cgroup = group
	return place, nil
}

// resolvConf returns the host path of the pod's resolv.conf, "" if it has none. It is
// what CRI-O mounts: CRI-O also has an annotation that says it, but writes those of the
// pod's owner over its own.
func resolvConf(spec *rspec.Spec) string {
	for _, m := range spec.Mounts {
		if m.Destination == hostResolvConf {
			return m.Source
		}
	}
	return ""
}
