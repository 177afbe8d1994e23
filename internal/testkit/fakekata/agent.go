package fakekata

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// What Kata's shims look for in a spec. The names are not those of pkg/annotations, nor is
// the volume pkg/katavolume's: a witness that shares its words with the accused is none.
const (
	criType      = "io.kubernetes.cri.container-type"
	crioType     = "io.kubernetes.cri-o.ContainerType"
	criSandbox   = "io.kubernetes.cri.sandbox-id"
	crioSandbox  = "io.kubernetes.cri-o.SandboxID"
	criImage     = "io.kubernetes.cri.image-name"
	crioImage    = "io.kubernetes.cri-o.ImageName"
	volumeOption = "io.katacontainers.volume="
	volumeMount  = "fuse.nydus-overlayfs"
	guestPull    = "image_guest_pull"
	guestRoot    = "/run/kata-containers/"
)

// The types of containers.
const (
	typeSandbox   = "sandbox"
	typeContainer = "container"
	typeSingle    = "single"
)

// pauseImage is the reference that Kata gives a pod's own container, whatever the host says.
const pauseImage = "pause"

// pauseProcess is what it runs: the guest's own, and nothing of the host's.
func pauseProcess() Process {
	return Process{Args: []string{"/pause"}, Env: []string{}, Cwd: "/", Groups: []uint32{}}
}

// containerType returns the type of a container, and the key that says it.
func containerType(spec *rspec.Spec) (kind, key string, err error) {
	for _, key := range []string{criType, crioType} {
		switch value, ok := spec.Annotations[key]; {
		case !ok:
		case value == typeSandbox || value == typeContainer:
			return value, key, nil
		default:
			return "", "", fmt.Errorf("unknown container type %s", value)
		}
	}
	return typeSingle, "", nil
}

func sandboxID(spec *rspec.Spec) (string, error) {
	for _, key := range []string{criSandbox, crioSandbox} {
		if id, ok := spec.Annotations[key]; ok {
			return id, nil
		}
	}
	return "", errors.New("could not find sandbox ID")
}

// volume is a KataVirtualVolume, as far as a guest pull has one.
type volume struct {
	Type      string `json:"volume_type"`
	Source    string `json:"source"`
	ImagePull *struct {
		Metadata map[string]string `json:"metadata"`
	} `json:"image_pull"`
}

// volumeOf is what a flavour reads from the root file system of a request.
func volumeOf(flavour string, mounts []Mount) (volume, error) {
	if len(mounts) != 1 {
		return volume{}, fmt.Errorf("%d mounts for the root file system: Kata uses one", len(mounts))
	}
	m := mounts[0]
	if m.Type != volumeMount {
		return volume{}, fmt.Errorf("the root file system is of type %q: the host would have to mount it", m.Type)
	}
	i := slices.IndexFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, volumeOption) })
	if i < 0 {
		return volume{}, errors.New("no KataVirtualVolume: the guest would have an empty root file system")
	}
	data, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Options[i], volumeOption))
	if err != nil {
		return volume{}, fmt.Errorf("KataVirtualVolume base64 decoding: %w", err)
	}
	var v volume
	if err := json.Unmarshal(data, &v); err != nil {
		return volume{}, fmt.Errorf("KataVirtualVolume json: %w", err)
	}
	switch {
	case v.Type != guestPull:
		return volume{}, fmt.Errorf("volume type %q: nothing was attached to the machine for it", v.Type)
	case flavour == FlavourRust && v.Source == "":
		return volume{}, errors.New("missing image reference for guest pulling volume")
	case flavour == FlavourGo && (v.ImagePull == nil || v.ImagePull.Metadata == nil):
		return volume{}, errors.New("KataVirtualVolume is not correct: no image_pull.metadata")
	}
	return v, nil
}

// reference is what Kata overwrites the volume's source with.
func reference(flavour string, spec *rspec.Spec) (string, error) {
	kind, key, err := containerType(spec)
	if err != nil {
		return "", err
	}
	if kind == typeSandbox {
		return pauseImage, nil
	}
	names := []string{criImage}
	switch {
	case key == crioType:
		names = []string{crioImage}
	case key == "" && flavour == FlavourRust:
		names = []string{criImage, crioImage}
	}
	for _, name := range names {
		if ref := spec.Annotations[name]; ref != "" {
			return ref, nil
		}
	}
	return "", errors.New("failed to get image name from annotations")
}

// storageOf is what the agent is told of the root file system.
func storageOf(flavour, id string, spec *rspec.Spec, mounts []Mount) (*Storage, error) {
	v, err := volumeOf(flavour, mounts)
	if err != nil {
		return nil, err
	}
	ref, err := reference(flavour, spec)
	if err != nil {
		return nil, err
	}
	metadata := map[string]string{}
	if v.ImagePull != nil {
		maps.Copy(metadata, v.ImagePull.Metadata)
	}
	maps.Copy(metadata, spec.Annotations)
	pull, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return nil, err
	}
	return &Storage{
		Driver: guestPull, DriverOptions: []string{guestPull + "=" + string(pull)},
		Source: ref, FSType: "overlay", MountPoint: filepath.Join(guestRoot, id, "rootfs"),
	}, nil
}

// processOf is what the agent runs of the host's process. A user's name is not read.
func processOf(p *rspec.Process) (Process, error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return Process{}, errors.New("no arguments: the image's are not known to the guest")
	}
	if !filepath.IsAbs(p.Cwd) {
		return Process{}, fmt.Errorf("cwd %q is not absolute", p.Cwd)
	}
	return Process{
		Args: p.Args, Env: orEmpty(p.Env), Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID,
		Groups: orEmpty(p.User.AdditionalGids), Terminal: p.Terminal,
	}, nil
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
