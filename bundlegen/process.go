package bundlegen

import (
	"maps"
	"path"
	"slices"
	"strings"

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
	// Labels are those of the image config.
	Labels map[string]string
}

// Effective applies req to the image by the conversion rules of the OCI image spec
// and CRI-O's (SpecSetProcessArgs, mergeEnvs). The error is InvalidArgument when
// nothing would be run, and TooLarge for more volumes than any image needs.
func Effective(image imgspec.Image, req Request) (Process, error) {
	args := effectiveArgs(image.Config, req)
	if len(args) == 0 {
		return Process{}, errdefs.Newf(errdefs.InvalidArgument, "compute container process",
			"no command specified, neither by the image nor by the request")
	}
	vols := volumes(image.Config)
	if err := checkVolumes(vols); err != nil {
		return Process{}, err
	}
	return Process{
		Args:       args,
		Env:        mergeEnv(image.Config.Env, req.Env),
		Cwd:        firstOf(req.WorkingDir, image.Config.WorkingDir, "/"),
		StopSignal: firstOf(req.StopSignal, image.Config.StopSignal),
		Volumes:    vols,
		Labels:     maps.Clone(image.Config.Labels),
	}, nil
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
