package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/types"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/katavolume"
)

const (
	// templateFile keeps config.json as CRI-O wrote it, beside the finished one.
	templateFile = "config.template.json"
	// maxSpec bounds config.json. CRI-O copies a pod's annotations into it several
	// times over; larger than this it was not made by CRI-O.
	maxSpec  = 16 << 20
	specMode = 0o600
	// capSysResource is the number of the capability that lets a process lower its
	// own or another's oom_score_adj (capabilities(7)).
	capSysResource = 24
	hexBase        = 16
)

func readSpec(bundle string) (*rspec.Spec, error) {
	op := "read the spec in " + bundle
	data, err := pod.ReadFile(filepath.Join(bundle, configFile), maxSpec)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	var spec rspec.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return nil, errdefs.Newf(errdefs.InvalidArgument, op, "no process, root or linux section")
	}
	return &spec, nil
}

// writeSpec replaces config.json, atomically, and keeps the original.
func writeSpec(bundle string, spec *rspec.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode the spec of %s: %w", bundle, err)
	}
	config := filepath.Join(bundle, configFile)
	err = os.Link(config, filepath.Join(bundle, templateFile))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("keep the template in %s: %w", bundle, err)
	}
	if err := pod.WriteFile(config, data, specMode); err != nil {
		return fmt.Errorf("write the spec in %s: %w", bundle, err)
	}
	return nil
}

func isSandbox(spec *rspec.Spec) bool {
	return spec.Annotations[annotations.CRIOContainerType] == annotations.ContainerTypeSandbox
}

// guestPull returns the volume by which CRI-O asks for a pull.
func guestPull(mounts []*types.Mount) (katavolume.Volume, error) {
	const op = "find the container's image"
	for _, m := range mounts {
		v, found, err := katavolume.FromOptions(m.GetOptions())
		if err != nil {
			return katavolume.Volume{}, err
		}
		if !found {
			continue
		}
		if v.VolumeType != katavolume.TypeImageGuestPull {
			return katavolume.Volume{}, errdefs.Newf(errdefs.Unsupported, op, "a volume of type %s", v.VolumeType)
		}
		return v, nil
	}
	return katavolume.Volume{}, errdefs.Newf(errdefs.InvalidArgument, op,
		"no %s volume: the handler needs runtime_pull_image = true", katavolume.TypeImageGuestPull)
}

// pinned returns the reference to pull: the one that the front pinned, else that of
// the volume. One without a digest is refused: what runs must be what was checked.
func pinned(spec *rspec.Spec, v katavolume.Volume) (imageref.Reference, error) {
	name := spec.Annotations[annotations.ImageRef]
	if name == "" {
		name = v.Source
	}
	op := "pull " + name
	ref, err := imageref.ParseReference(name)
	if err != nil {
		return imageref.Reference{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if ref.Digest().IsZero() {
		return imageref.Reference{}, errdefs.Newf(errdefs.InvalidArgument, op,
			"the reference has no digest: was the container created through husk?")
	}
	return ref.Pin(ref.Digest())
}

// userOf returns whom a container runs as. Without the front's word on it, it is
// whom CRI-O wrote into the spec, as numbers: CRI-O had the image's config and the
// request, and refuses what it cannot resolve. The shim adds no default of its own,
// so a container is root only where CRI-O says so.
func userOf(spec *rspec.Spec) (bundlegen.User, error) {
	if annotation, ok := spec.Annotations[annotations.User]; ok {
		return bundlegen.ParseUser(annotation)
	}
	u := spec.Process.User
	return bundlegen.User{
		Spec:               fmt.Sprintf("%d:%d", u.UID, u.GID),
		SupplementalGroups: u.AdditionalGids,
		Policy:             bundlegen.Strict,
	}, nil
}

// volumesOf returns the image's volumes: those the front found, else the pulled config's.
func volumesOf(spec *rspec.Spec, config map[string]struct{}) ([]string, error) {
	annotation, ok := spec.Annotations[annotations.ImageVolumes]
	if !ok {
		volumes := make([]string, 0, len(config))
		for v := range config {
			volumes = append(volumes, v)
		}
		slices.Sort(volumes)
		return volumes, nil
	}
	var volumes []string
	if err := json.Unmarshal([]byte(annotation), &volumes); err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "annotation "+annotations.ImageVolumes, err)
	}
	return volumes, nil
}

// refuseUnsupported refuses what would run wrongly rather than not at all.
func refuseUnsupported(spec *rspec.Spec) error {
	for _, m := range spec.Mounts {
		if slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared") {
			return errdefs.Newf(errdefs.Unsupported, "mount "+m.Destination,
				"bidirectional propagation: nothing that is mounted in a pod reaches the host")
		}
	}
	return nil
}

// limitOOMScore raises the container's oom_score_adj to the shim's own where the
// shim may not set the wanted one (containerd's restrict_oom_score_adj).
func limitOOMScore(spec *rspec.Spec) error {
	want := spec.Process.OOMScoreAdj
	if want == nil {
		return nil
	}
	own, err := sandbox.OOMScore(os.Getpid())
	if err != nil {
		return err
	}
	if *want >= own {
		return nil
	}
	may, err := hasCapability(capSysResource)
	if err != nil {
		return err
	}
	if !may {
		spec.Process.OOMScoreAdj = &own
	}
	return nil
}

func hasCapability(number uint) (bool, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		value, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), hexBase, 64)
		if err != nil {
			return false, fmt.Errorf("read capabilities: %w", err)
		}
		return set&(1<<number) != 0, nil
	}
	return false, errors.New("read capabilities: none in /proc/self/status")
}
