// Package katavolume reads and writes the KataVirtualVolume, by which CRI-O and
// nydus tell a runtime where a container's root file system comes from
// (Kata Containers src/runtime/virtcontainers/types/virtual_volume.go).
//
// A volume travels as an option of a root file system mount: the option's name,
// [OptionName], and the standard base64 of the volume's JSON.
package katavolume

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// OptionName is the name of the mount option that carries a volume.
const OptionName = "io.katacontainers.volume"

// MountType is the type of the mount that CRI-O and nydus put the option on.
const MountType = "fuse.nydus-overlayfs"

// maxEncoded is the longest option value that is decoded, in bytes. CRI-O puts
// every annotation of a container into the volume, and a ttrpc message holds
// 4 MiB; a longer one is an accident or an attempt to fill the shim's memory.
const maxEncoded = 2 << 20

// maxMetadata is the most metadata entries of a volume: Kubernetes limits the
// annotations of a pod to 256 KiB in all, so more of them are not annotations.
const maxMetadata = 16 << 10

// The volume types of Kata.
const (
	TypeDirectBlock     = "direct_block"
	TypeImageRawBlock   = "image_raw_block"
	TypeLayerRawBlock   = "layer_raw_block"
	TypeImageNydusBlock = "image_nydus_block"
	TypeLayerNydusBlock = "layer_nydus_block"
	TypeImageNydusFs    = "image_nydus_fs"
	TypeLayerNydusFs    = "layer_nydus_fs"
	// TypeImageGuestPull is an image whose layers the sandbox pulls itself.
	TypeImageGuestPull = "image_guest_pull"
)

// Volume is a KataVirtualVolume.
type Volume struct {
	// VolumeType is one of the Type constants.
	VolumeType string `json:"volume_type"`
	// Source is the image reference of a guest pull, else a device or a path.
	Source string `json:"source,omitempty"`
	// FSType is the file system type; CRI-O writes "overlay_fs".
	FSType string `json:"fs_type,omitempty"`
	// Options are mount options.
	Options []string `json:"options,omitempty"`
	// DirectVolume belongs to TypeDirectBlock.
	DirectVolume *Metadata `json:"direct_volume,omitempty"`
	// ImagePull belongs to TypeImageGuestPull.
	ImagePull *Metadata `json:"image_pull,omitempty"`
	// NydusImage belongs to the nydus types.
	NydusImage *NydusImage `json:"nydus_image,omitempty"`
	// DmVerity belongs to the raw block types.
	DmVerity *DmVerity `json:"dm_verity,omitempty"`
}

// Metadata is what a volume says of itself: for a guest pull, every annotation of
// the container.
type Metadata struct {
	Metadata map[string]string `json:"metadata"`
}

// NydusImage is the configuration of a nydus image.
type NydusImage struct {
	Config      string `json:"config"`
	SnapshotDir string `json:"snapshot_dir"`
}

// DmVerity describes the hash tree of a block device.
type DmVerity struct {
	HashType  string `json:"hashtype"`
	Hash      string `json:"hash"`
	BlockNum  uint64 `json:"blocknum"`
	BlockSize uint64 `json:"blocksize"`
	HashSize  uint64 `json:"hashsize"`
	Offset    uint64 `json:"offset"`
}

// Option returns v as a mount option, "io.katacontainers.volume=<base64>".
func (v Volume) Option() (string, error) {
	if err := v.validate(); err != nil {
		return "", err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode kata volume: %w", err)
	}
	return OptionName + "=" + base64.StdEncoding.EncodeToString(data), nil
}

// FromOptions returns the volume among the options of a mount; found is false when
// there is none. An option that is there but wrong is an InvalidArgument error that
// names the field.
func FromOptions(options []string) (v Volume, found bool, err error) {
	for _, option := range options {
		value, ok := strings.CutPrefix(option, OptionName+"=")
		if !ok {
			continue
		}
		v, err = decode(value)
		return v, err == nil, err
	}
	return Volume{}, false, nil
}

func decode(value string) (Volume, error) {
	const op = "decode kata volume"
	if len(value) > maxEncoded {
		return Volume{}, errdefs.Newf(errdefs.TooLarge, op, "%d bytes, more than %d", len(value), maxEncoded)
	}
	data, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil {
		return Volume{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	var v Volume
	if err := json.Unmarshal(data, &v); err != nil {
		return Volume{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if err := v.validate(); err != nil {
		return Volume{}, err
	}
	return v, nil
}

func (v Volume) validate() error {
	invalid := func(field, reason string) error {
		return errdefs.Newf(errdefs.InvalidArgument, "kata volume", "%s: %s", field, reason)
	}
	switch v.VolumeType {
	case TypeImageGuestPull:
		if v.Source == "" {
			return invalid("source", "empty: a guest pull needs an image reference")
		}
		if v.ImagePull == nil || v.ImagePull.Metadata == nil {
			return invalid("image_pull.metadata", "missing")
		}
		if n := len(v.ImagePull.Metadata); n > maxMetadata {
			return invalid("image_pull.metadata", fmt.Sprintf("%d entries, more than %d", n, maxMetadata))
		}
	case TypeDirectBlock:
		if v.DirectVolume == nil || v.DirectVolume.Metadata == nil {
			return invalid("direct_volume.metadata", "missing")
		}
	case TypeImageNydusBlock, TypeLayerNydusBlock, TypeImageNydusFs, TypeLayerNydusFs:
		if v.NydusImage == nil {
			return invalid("nydus_image", "missing")
		}
	case TypeImageRawBlock, TypeLayerRawBlock:
		if v.Source == "" {
			return invalid("source", "empty")
		}
	default:
		return invalid("volume_type", fmt.Sprintf("unknown type %q", v.VolumeType))
	}
	return nil
}
