package bundlegen

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/contrib/seccomp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// SpecOptions is what of a container neither its image nor the request decides. The zero
// value is an unprivileged container with namespaces of its own, as stock CRI-O 1.34 makes
// it, for a runtime that resolves no names.
type SpecOptions struct {
	// RewriteOptions say what the runtime can do, as for [Rewrite].
	RewriteOptions
	// Hostname is set in the UTS namespace and as the variable HOSTNAME. Empty: neither.
	Hostname string
	// RootPath is root.path, absolute or relative to the bundle. Empty: "rootfs".
	RootPath string
	// ReadonlyRoot mounts the root filesystem read-only.
	ReadonlyRoot bool
	// NoNewPrivileges keeps the process from gaining any by what it executes. A
	// [SandboxSpec] always has it.
	NoNewPrivileges bool
	// Terminal gives the process a terminal.
	Terminal bool
	// Mounts come after the standard ones (/proc, /dev, /dev/pts, /dev/shm, /dev/mqueue,
	// /sys, /sys/fs/cgroup), in their order. One over /dev or /sys takes the place of all
	// standard ones there, any other that of the standard one with the same destination.
	Mounts []rspec.Mount
	// Namespaces are the container's. Nil: new pid, network, ipc, uts and mount, and cgroup
	// where the kernel has the unified hierarchy.
	Namespaces []rspec.LinuxNamespace
	// CgroupsPath is linux.cgroupsPath. Empty: the runtime's choice.
	CgroupsPath string
	// OOMScoreAdj is process.oomScoreAdj. Nil: the runtime's.
	OOMScoreAdj *int
	// Annotations are added to the spec's own. A reserved key of Husk, or one that Spec
	// writes, is refused.
	Annotations map[string]string
	// Unconfined leaves seccomp off. Zero: containerd's default profile for the capabilities.
	Unconfined bool
	// Capabilities are the bounding, effective and permitted ones, with or without "CAP_".
	// Nil: CRI-O's default_capabilities; empty: none. For a [SandboxSpec] nil is none too.
	Capabilities []string
}

// Spec returns the complete runtime spec of a container of rec, pulled by the given
// reference. Its root filesystem is not there yet: where the layers are, [Complete] finishes
// it. User, process and annotations are those that [Rewrite] makes CRI-O write, the rest is
// CRI-O's for an unprivileged container. Its errors are those of Rewrite, and
// InvalidArgument for options that no spec can be made of.
func Spec(rec imageref.Record, pulled imageref.PulledReference, req Request, opts SpecOptions) (*rspec.Spec, error) {
	op := "make container spec of " + pulled.Reference.String()
	changes, process, err := rewrite(rec, pulled, req, opts.RewriteOptions)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	notes := changes.Annotations
	if process.StopSignal != "" {
		notes[stopSignalAnnotation] = process.StopSignal
	}
	if opts.Capabilities == nil {
		opts.Capabilities = defaultCapabilities()
	}
	g, err := newGenerator(process, notes, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	setUser(g, changes, req.SupplementalGroups)
	return g.Config, nil
}

// SandboxSpec returns the runtime spec of a pod's own container, which holds the pod's
// namespaces and runs args, an absolute path first, out of a mount of opts and no image:
// without capabilities, with a read-only root, as the user of the pause image. Its errors
// are InvalidArgument.
func SandboxSpec(args []string, opts SpecOptions) (*rspec.Spec, error) {
	const op = "make sandbox spec"
	process := Process{Args: slices.Clone(args), Cwd: "/"}
	if err := checkProcess(process); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	opts.ReadonlyRoot, opts.NoNewPrivileges = true, true
	if opts.Capabilities == nil {
		opts.Capabilities = []string{}
	}
	g, err := newGenerator(process, nil, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	setUser(g, Changes{RunAsUser: pauseID, RunAsGroup: new(int64(pauseID))}, nil)
	return g.Config, nil
}

// newGenerator returns runtime-tools' generator of all of a spec but the user. It starts
// from defaults of its own: those of generate.New are in part overwritten by CRI-O, and
// their environment is not found again by the generator, which would leave two PATHs.
func newGenerator(process Process, notes map[string]string, opts SpecOptions) (*generate.Generator, error) {
	capabilities, err := capabilitySets(opts.Capabilities)
	if err != nil {
		return nil, err
	}
	mounts, err := allMounts(opts.Mounts)
	if err != nil {
		return nil, err
	}
	if err := checkOwn(opts.Annotations, notes); err != nil {
		return nil, err
	}
	g := generate.NewFromSpec(&rspec.Spec{
		Version: rspec.Version,
		Process: &rspec.Process{Capabilities: capabilities, OOMScoreAdj: clonePtr(opts.OOMScoreAdj)},
		Mounts:  mounts,
		Linux: &rspec.Linux{
			Resources:     &rspec.LinuxResources{Devices: []rspec.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces:    namespaces(opts.Namespaces),
			MaskedPaths:   maskedPaths(),
			ReadonlyPaths: readonlyPaths(),
		},
	})
	g.SetRootPath(firstOf(opts.RootPath, "rootfs"))
	g.SetRootReadonly(opts.ReadonlyRoot)
	g.SetHostname(opts.Hostname)
	g.SetProcessArgs(process.Args)
	g.SetProcessCwd(process.Cwd)
	g.SetProcessTerminal(opts.Terminal)
	g.SetProcessNoNewPrivileges(opts.NoNewPrivileges)
	g.SetLinuxCgroupsPath(opts.CgroupsPath)
	g.SetLinuxResourcesPidsLimit(-1) // CRI-O's default: the pod's cgroup has the limit
	g.AddMultipleProcessEnv(nodeEnv(opts.Hostname))
	g.AddMultipleProcessEnv(process.Env)
	for _, from := range []map[string]string{notes, opts.Annotations} {
		for key, value := range from {
			g.AddAnnotation(key, value)
		}
	}
	if !opts.Unconfined {
		g.Config.Linux.Seccomp = seccomp.DefaultProfile(g.Config)
	}
	return &g, nil
}

// setUser puts the ids there as CRI-O does: the primary group is the first of the
// additional ones too.
func setUser(g *generate.Generator, changes Changes, supplemental []int64) {
	g.SetProcessUID(uint32(changes.RunAsUser))
	var gid uint32
	if changes.RunAsGroup != nil {
		gid = uint32(*changes.RunAsGroup)
	}
	g.SetProcessGID(gid)
	groups := make([]uint32, 0, 1+len(supplemental))
	groups = append(groups, gid)
	for _, group := range supplemental { // checked by EffectiveUser
		groups = append(groups, uint32(group))
	}
	g.Config.Process.User.AdditionalGids = dedup(groups)
}

// checkOwn refuses annotations that would say of a container what Spec, or Husk later, says of it.
func checkOwn(added, own map[string]string) error {
	for key := range added {
		_, written := own[key]
		if written || (strings.HasPrefix(key, annotations.Prefix) && annotations.Reserved(key)) {
			return errdefs.Newf(errdefs.InvalidArgument, "check annotations", "%s is Husk's own", key)
		}
	}
	return nil
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	return new(*p)
}
