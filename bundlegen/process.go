package bundlegen

import (
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The volumes come from an image that may be hostile, and each component of each path
// costs a walk and a directory on the node. Real images have a handful of short paths.
const (
	// maxVolumes bounds how many volumes an image may have.
	maxVolumes = 128
	// maxVolumePath bounds the length of one, in bytes.
	maxVolumePath = 1024
)

// Process is what a container runs: the image config with the request applied.
type Process struct {
	// Args is the command line; never empty.
	Args []string
	// Env holds "NAME=value": the request's variables in its order, then those of the
	// image that the request does not set. Variables of the node (PATH, TERM,
	// HOSTNAME, default_env) come from the runtime and yield to these.
	Env []string
	// Cwd is the working directory; "/" unless the image or the request sets one.
	Cwd string
	// StopSignal is a signal name or number, "" for the runtime's default.
	StopSignal string
	// Volumes are the image's volumes: absolute, clean, sorted paths.
	Volumes []string
	// ExposedPorts are the image's ports, "port" or "port/protocol", sorted. They open nothing.
	ExposedPorts []string
	// Labels are those of the image config. They are no annotations of the container.
	Labels map[string]string
}

// Effective applies req to the image by the conversion rules of the OCI image spec
// and CRI-O's (SpecSetProcessArgs, mergeEnvs). A health check, which only Docker's config
// has, is ignored. The error is InvalidArgument when nothing would be run or what would be
// cannot be passed to the kernel, and TooLarge for more volumes than any image needs.
func Effective(image imgspec.Image, req Request) (Process, error) {
	p := Process{
		Args:         effectiveArgs(image.Config, req),
		Env:          mergeEnv(image.Config.Env, req.Env),
		Cwd:          firstOf(req.WorkingDir, image.Config.WorkingDir, "/"),
		StopSignal:   firstOf(req.StopSignal, image.Config.StopSignal),
		Volumes:      volumes(image.Config),
		ExposedPorts: slices.Sorted(maps.Keys(image.Config.ExposedPorts)),
		Labels:       maps.Clone(image.Config.Labels),
	}
	if err := checkProcess(p); err != nil {
		return Process{}, err
	}
	if err := checkVolumes(p.Volumes); err != nil {
		return Process{}, err
	}
	return p, nil
}

// checkProcess refuses what no kernel runs, or no config.json says. A NUL ends a string in
// the one, and what is not UTF-8 becomes something else in the other: what runs would not be
// what was read here.
func checkProcess(p Process) error {
	const op = "compute container process"
	if len(p.Args) == 0 {
		return errdefs.Newf(errdefs.InvalidArgument, op, "no command specified, neither by the image nor by the request")
	}
	if !path.IsAbs(p.Cwd) {
		return errdefs.Newf(errdefs.InvalidArgument, op, "working directory %q is not an absolute path", p.Cwd)
	}
	for what, list := range map[string][]string{"command": p.Args, "env": p.Env, "working directory": {p.Cwd}} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return errdefs.Newf(errdefs.InvalidArgument, op, "NUL in the %s", what)
			}
			if !utf8.ValidString(s) {
				return errdefs.Newf(errdefs.InvalidArgument, op, "the %s is not UTF-8", what)
			}
		}
	}
	return nil
}

func effectiveArgs(image imgspec.ImageConfig, req Request) []string {
	switch {
	case len(req.Command) > 0:
		return slices.Concat(req.Command, req.Args)
	case len(req.Args) > 0:
		return slices.Concat(image.Entrypoint, req.Args)
	default:
		return slices.Concat(image.Entrypoint, image.Cmd)
	}
}

// mergeEnv keeps the first place and the last value of a variable, as the generator
// that CRI-O writes its spec with does. Entries without a name or without "=" are no
// variables and are dropped, as CRI-O drops them.
func mergeEnv(image, request []string) []string {
	var env []string
	place := map[string]int{}
	add := func(entries []string, replace bool) {
		for _, entry := range entries {
			name, _, ok := strings.Cut(entry, "=")
			if !ok || name == "" {
				continue
			}
			at, seen := place[name]
			switch {
			case !seen:
				place[name] = len(env)
				env = append(env, entry)
			case replace:
				env[at] = entry
			}
		}
	}
	add(request, true)
	add(image, len(request) == 0)
	return env
}

func volumes(image imgspec.ImageConfig) []string {
	var paths []string
	for v := range image.Volumes {
		paths = append(paths, path.Join("/", v))
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// checkVolumes refuses volumes that Effective would never return.
func checkVolumes(volumes []string) error {
	const op = "check image volumes"
	if len(volumes) > maxVolumes {
		return errdefs.Newf(errdefs.TooLarge, op, "%d volumes, at most %d", len(volumes), maxVolumes)
	}
	for _, v := range volumes {
		if len(v) > maxVolumePath {
			return errdefs.Newf(errdefs.TooLarge, op, "a path of %d bytes, at most %d", len(v), maxVolumePath)
		}
		if !path.IsAbs(v) {
			return errdefs.Newf(errdefs.InvalidArgument, op, "%q is not an absolute path", v)
		}
	}
	return nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
