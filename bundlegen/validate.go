package bundlegen

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/validate"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Validate says what a runtime would refuse in spec: what runtime-tools' validator finds,
// and a few things that it does not look at. It downloads no schema and looks at no rootfs,
// which is not there yet. The error is InvalidArgument and names every fault.
func Validate(spec *rspec.Spec) error {
	const op = "validate container spec"
	if spec == nil || spec.Process == nil || spec.Linux == nil || spec.Root == nil || spec.Root.Path == "" {
		return errdefs.Newf(errdefs.InvalidArgument, op, "process, root.path or linux is missing")
	}
	faults := errors.Join(checkSpecProcess(spec.Process), checkSpecMounts(spec.Mounts), checkNamespaces(spec), byRuntimeTools(spec))
	if faults != nil {
		return errdefs.New(errdefs.InvalidArgument, op, faults)
	}
	return nil
}

// byRuntimeTools runs the validator's checks one by one. Left out are CheckJSONSchema, which
// downloads the schema (a test has it), CheckRoot, which wants the rootfs, CheckAnnotations,
// which refuses what CRI-O writes (org.opencontainers.image.stopSignal), and CheckMounts,
// which adds a warning on every call to what checkSpecMounts says.
func byRuntimeTools(spec *rspec.Spec) error {
	s := *spec
	process, root, linux := *spec.Process, rspec.Root{Path: "rootfs"}, *spec.Linux
	s.Process, s.Root, s.Linux = &process, &root, &linux
	// It would look for all three below a rootfs, by paths that the image says.
	process.Args, process.ApparmorProfile, linux.Devices = []string{"program"}, "", nil
	// It takes no variable with a dot or a dash in its name, and wants a new UTS or user
	// namespace where CRI-O joins the pod's; checkNamespaces knows both.
	process.Env, s.Hostname, linux.UIDMappings, linux.GIDMappings = nil, "", nil, nil
	v, err := validate.NewValidator(&s, "/", false, "linux")
	if err != nil {
		return err
	}
	var faults []error
	for _, found := range []error{
		v.CheckPlatform(), v.CheckMandatoryFields(), v.CheckSemVer(), v.CheckProcess(), v.CheckLinux(), v.CheckHooks(),
	} {
		var list interface{ WrappedErrors() []error }
		if errors.As(found, &list) { // a list of none is an error that is not nil
			faults = append(faults, list.WrappedErrors()...)
		} else {
			faults = append(faults, found)
		}
	}
	return errors.Join(faults...)
}

func checkSpecProcess(p *rspec.Process) error {
	faults := checkProcess(Process{Args: p.Args, Env: p.Env, Cwd: p.Cwd})
	for i, entry := range p.Env {
		if name, _, ok := strings.Cut(entry, "="); !ok || name == "" {
			faults = errors.Join(faults, fmt.Errorf("entry %d of env is not NAME=value", i))
		}
	}
	return faults
}

func checkSpecMounts(mounts []rspec.Mount) (faults error) {
	for i, m := range mounts {
		if !path.IsAbs(m.Destination) {
			faults = errors.Join(faults, fmt.Errorf("destination %q of mount %d is not an absolute path", m.Destination, i))
		}
	}
	return faults
}

// checkNamespaces wants a namespace for what would otherwise be the host's.
func checkNamespaces(spec *rspec.Spec) (faults error) {
	has := func(kind rspec.LinuxNamespaceType) bool {
		return slices.ContainsFunc(spec.Linux.Namespaces, func(ns rspec.LinuxNamespace) bool { return ns.Type == kind })
	}
	if spec.Hostname != "" && !has(rspec.UTSNamespace) {
		faults = errors.New("a hostname, and no uts namespace")
	}
	if len(spec.Linux.UIDMappings)+len(spec.Linux.GIDMappings) > 0 && !has(rspec.UserNamespace) {
		faults = errors.Join(faults, errors.New("mappings, and no user namespace"))
	}
	return faults
}
