package bundlegen

import (
	"errors"
	"fmt"
	"math"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// maxRanges is how many ranges the kernel takes (user_namespaces(7)).
const maxRanges = 340

// Mapping is how a container's user namespace names the host's users and groups. The zero
// value is no user namespace.
type Mapping struct {
	// UIDs and GIDs are as in the runtime spec.
	UIDs, GIDs []rspec.LinuxIDMapping
}

// MappingOf returns the mapping of the container with this spec. Its errors are InvalidArgument
// for one that the kernel would not take or that lacks root, and for a user namespace
// without one: what the container's users could then do to the layers, nobody has said.
func MappingOf(spec *rspec.Spec) (Mapping, error) {
	const op = "map the users of a user namespace"
	if spec.Linux == nil {
		return Mapping{}, nil
	}
	m := Mapping{UIDs: spec.Linux.UIDMappings, GIDs: spec.Linux.GIDMappings}
	if m.IsZero() {
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type == rspec.UserNamespace {
				return Mapping{}, errdefs.Newf(errdefs.InvalidArgument, op, "it has no mappings")
			}
		}
		return Mapping{}, nil
	}
	for name, ranges := range map[string][]rspec.LinuxIDMapping{"user": m.UIDs, "group": m.GIDs} {
		if err := checkRanges(ranges); err != nil {
			return Mapping{}, errdefs.Newf(errdefs.InvalidArgument, op, "%ss: %w", name, err)
		}
	}
	return m, nil
}

func checkRanges(ranges []rspec.LinuxIDMapping) error {
	if len(ranges) > maxRanges {
		return fmt.Errorf("%d ranges, at most %d", len(ranges), maxRanges)
	}
	for _, r := range ranges {
		if r.Size == 0 || uint64(r.ContainerID)+uint64(r.Size) > math.MaxUint32 || uint64(r.HostID)+uint64(r.Size) > math.MaxUint32 {
			return fmt.Errorf("%d:%d:%d is no range", r.ContainerID, r.HostID, r.Size)
		}
	}
	if _, ok := onHost(ranges, 0); !ok {
		return errors.New("none for root")
	}
	return nil
}

// IsZero reports whether there is no user namespace.
func (m Mapping) IsZero() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// Host returns the host's names of a user and a group of the container. One that is not
// mapped is InvalidArgument.
func (m Mapping) Host(uid, gid uint32) (hostUID, hostGID uint32, err error) {
	if m.IsZero() {
		return uid, gid, nil
	}
	hostUID, ok := onHost(m.UIDs, uid)
	if !ok {
		return 0, 0, errdefs.Newf(errdefs.InvalidArgument, "map the users of a user namespace", "user %d has no place in it", uid)
	}
	if hostGID, ok = onHost(m.GIDs, gid); !ok {
		return 0, 0, errdefs.Newf(errdefs.InvalidArgument, "map the users of a user namespace", "group %d has no place in it", gid)
	}
	return hostUID, hostGID, nil
}

func onHost(ranges []rspec.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, r := range ranges {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + (id - r.ContainerID), true
		}
	}
	return 0, false
}
