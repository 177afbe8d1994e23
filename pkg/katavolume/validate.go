package katavolume

import (
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The limits of a dm-verity device, as Kata's shims have them.
const (
	minBlockSize = 512
	maxBlockSize = 512 << 10
	sha256Digits = 64
	sha1Digits   = 40
)

// The file systems of nydus images: only the sixth can be read from a block device.
const rafs5, rafs6 = "rafsv5", "rafsv6"

// invalid is the error of a field, which is named as in the JSON.
func invalid(field, reason string, args ...any) error {
	return errdefs.Newf(errdefs.InvalidArgument, "kata volume", "%s: %s", field, fmt.Sprintf(reason, args...))
}

// validate refuses what either of Kata's shims refuses, or cannot use.
func (v Volume) validate() error {
	if err := v.validateType(); err != nil {
		return err
	}
	if v.Source == "" {
		return invalid("source", "empty")
	}
	// Whatever belongs to another type is checked as well, as the Go shim does.
	if err := v.ImagePull.validate("image_pull"); err != nil {
		return err
	}
	if err := v.DirectVolume.validate("direct_volume"); err != nil {
		return err
	}
	if err := v.NydusImage.validate(); err != nil {
		return err
	}
	return v.DmVerity.validate()
}

func (v Volume) validateType() error {
	switch v.VolumeType {
	case TypeImageGuestPull:
		if v.ImagePull == nil {
			return invalid("image_pull.metadata", "missing") // the Go shim writes into it
		}
		return nil
	case TypeDirectBlock:
		if v.DirectVolume == nil {
			return invalid("direct_volume.metadata", "missing")
		}
		return v.hasFileSystem()
	case TypeImageRawBlock, TypeLayerRawBlock:
		return v.hasFileSystem()
	case TypeImageNydusBlock, TypeLayerNydusBlock:
		return v.isNydus(rafs6)
	case TypeImageNydusFs, TypeLayerNydusFs:
		return v.isNydus(rafs5, rafs6)
	}
	return invalid("volume_type", "unknown type %q", v.VolumeType)
}

func (v Volume) hasFileSystem() error {
	if v.FSType == "" {
		return invalid("fs_type", "empty")
	}
	return nil
}

func (v Volume) isNydus(fsTypes ...string) error {
	if !slices.Contains(fsTypes, v.FSType) {
		return invalid("fs_type", "%q, not %s", v.FSType, strings.Join(fsTypes, " or "))
	}
	if v.NydusImage == nil {
		return invalid("nydus_image", "missing")
	}
	return nil
}

func (m *Metadata) validate(field string) error {
	switch {
	case m == nil:
		return nil
	case m.Metadata == nil:
		return invalid(field+".metadata", "missing")
	case len(m.Metadata) > maxMetadata:
		return invalid(field+".metadata", "%d entries, more than %d", len(m.Metadata), maxMetadata)
	}
	return nil
}

func (n *NydusImage) validate() error {
	switch {
	case n == nil:
		return nil
	case n.Config == "":
		return invalid("nydus_image.config", "empty")
	case n.SnapshotDir == "":
		return invalid("nydus_image.snapshot_dir", "empty")
	}
	return nil
}

func (d *DmVerity) validate() error {
	if d == nil {
		return nil
	}
	digits := map[string]int{"sha256": sha256Digits, "sha1": sha1Digits}[strings.ToLower(d.HashType)]
	if digits == 0 {
		return invalid("dm_verity.hashtype", "%q, not sha256 or sha1", d.HashType)
	}
	if _, err := hex.DecodeString(d.Hash); err != nil || len(d.Hash) != digits {
		return invalid("dm_verity.hash", "not %d hexadecimal digits", digits)
	}
	if d.BlockNum == 0 || d.BlockNum > math.MaxUint32 {
		return invalid("dm_verity.blocknum", "%d, not 1 to %d", d.BlockNum, uint32(math.MaxUint32))
	}
	for _, size := range []struct {
		field string
		bytes uint64
	}{{"blocksize", d.BlockSize}, {"hashsize", d.HashSize}} {
		if size.bytes < minBlockSize || size.bytes > maxBlockSize {
			return invalid("dm_verity."+size.field, "%d, not %d to %d", size.bytes, minBlockSize, maxBlockSize)
		}
	}
	if d.Offset%d.HashSize != 0 || d.Offset < d.BlockSize*d.BlockNum {
		return invalid("dm_verity.offset", "%d is not on a hash block behind the data", d.Offset)
	}
	return nil
}
