// Package katavolume reads and writes the KataVirtualVolume, by which CRI-O and
// nydus tell a runtime where a container's root file system comes from
// (Kata Containers src/runtime/virtcontainers/types/virtual_volume.go).
//
// A volume travels as an option of a root file system mount: the option's name,
// [OptionName], and the standard base64 of the volume's JSON.
//
// Kata has two shims, in Go and in Rust, which read the same JSON and do not refuse the
// same of it. This package accepts what both take for the same volume: where they would
// see two, or one would fail, it names the field.
package katavolume

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
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

// FSTypeCRIO is the file system type that CRI-O writes into its volumes. Both shims replace it.
const FSTypeCRIO = "overlay_fs"

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
	// Source is the image reference of a guest pull, else a device or a path. It is in
	// every volume: the Rust shim refuses one without.
	Source string `json:"source,omitempty"`
	// FSType is the file system type: [FSTypeCRIO] from CRI-O, "rafsv5" or "rafsv6" of a
	// nydus image. Only a guest pull may have none.
	FSType string `json:"fs_type,omitempty"`
	// Options are mount options. An empty list is sent as none.
	Options []string `json:"options,omitempty"`
	// DirectVolume belongs to TypeDirectBlock.
	DirectVolume *Metadata `json:"direct_volume,omitempty"`
	// ImagePull belongs to TypeImageGuestPull.
	ImagePull *Metadata `json:"image_pull,omitempty"`
	// NydusImage belongs to the nydus types.
	NydusImage *NydusImage `json:"nydus_image,omitempty"`
	// DmVerity belongs to the block types, which may have none.
	DmVerity *DmVerity `json:"dm_verity,omitempty"`
}

// Metadata is what a volume says of itself: for a guest pull, every annotation of
// the container.
type Metadata struct {
	Metadata map[string]string `json:"metadata"`
}

// NydusImage is the configuration of a nydus image. Neither field may be empty.
type NydusImage struct {
	// Config is the JSON of nydusd's configuration.
	Config string `json:"config"`
	// SnapshotDir is the snapshot's directory on the host.
	SnapshotDir string `json:"snapshot_dir"`
}

// DmVerity describes the hash tree of a block device. All its fields are sent.
type DmVerity struct {
	// HashType is "sha256" or "sha1", in any case.
	HashType string `json:"hashtype"`
	// Hash is the root hash, in hexadecimal digits.
	Hash string `json:"hash"`
	// BlockNum is the number of data blocks.
	BlockNum uint64 `json:"blocknum"`
	// BlockSize is the size of a data block, in bytes.
	BlockSize uint64 `json:"blocksize"`
	// HashSize is the size of a hash block, in bytes.
	HashSize uint64 `json:"hashsize"`
	// Offset is where the hashes begin on the device, in bytes.
	Offset uint64 `json:"offset"`
}

// GuestPull returns the volume that CRI-O 1.34 sends for a container whose image the
// sandbox pulls: the image reference, and all annotations of the container's spec. They
// are copied; nil is sent as none.
func GuestPull(reference string, annotations map[string]string) Volume {
	metadata := make(map[string]string, len(annotations))
	maps.Copy(metadata, annotations)
	return Volume{
		VolumeType: TypeImageGuestPull,
		Source:     reference,
		FSType:     FSTypeCRIO,
		ImagePull:  &Metadata{Metadata: metadata},
	}
}

// Option returns v as a mount option, "io.katacontainers.volume=<base64>". For the same
// volume they are the bytes that CRI-O sends: the fields in Kata's order, the metadata
// sorted by key. An invalid volume is an InvalidArgument error that names the field, one
// that no shim would read for its size TooLarge.
func (v Volume) Option() (string, error) {
	if err := v.validate(); err != nil {
		return "", err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode kata volume: %w", err)
	}
	if err := tooLong("encode kata volume", base64.StdEncoding.EncodedLen(len(data))); err != nil {
		return "", err
	}
	return OptionName + "=" + base64.StdEncoding.EncodeToString(data), nil
}

// FromOptions returns the volume among the options of a mount; found is false when
// there is none. An option that is there but wrong is an InvalidArgument error that
// names the field. So are two of them: the Go shim takes both, the Rust one the first.
func FromOptions(options []string) (v Volume, found bool, err error) {
	for _, option := range options {
		value, ok := strings.CutPrefix(option, OptionName+"=")
		if !ok {
			continue
		}
		if found {
			return Volume{}, false, errdefs.Newf(errdefs.InvalidArgument, opDecode, "%s: more than one in a mount", OptionName)
		}
		if v, err = decode(value); err != nil {
			return Volume{}, false, err
		}
		found = true
	}
	return v, found, nil
}
