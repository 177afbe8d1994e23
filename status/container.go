package status

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Origin is where a container's image came from: the true values behind the
// storage ID that CRI-O reports for a container made from a layer-less record.
type Origin struct {
	// StorageID is the record's ID; CRI-O reports it as image_id and image_ref.
	StorageID string
	// ImageID is the config digest, 64 hex digits.
	ImageID string
	// ImageRef is the pinned reference, repo@digest.
	ImageRef string
	// UserImage is the reference the image was pulled by.
	UserImage string
}

// note takes one annotation of a container; those of the front say its origin.
func (o *Origin) note(key, value []byte) {
	switch string(key) {
	case annotations.RecordID:
		o.StorageID = string(value)
	case annotations.ImageID:
		o.ImageID = string(value)
	case annotations.ImageRef:
		o.ImageRef = string(value)
	case annotations.UserImage:
		o.UserImage = string(value)
	}
}

func (o *Origin) complete() bool {
	return o.StorageID != "" && o.ImageID != "" && o.ImageRef != "" && o.UserImage != ""
}

// FromRecord returns the origin of a container about which only the record that
// it was made from is known.
func FromRecord(rec imageref.Record) Origin {
	o := Origin{StorageID: rec.StorageID.String(), ImageID: rec.ImageID().String()}
	o.ImageRef, o.UserImage = o.ImageID, o.ImageID
	if newest := rec.NewestFirst(); len(newest) > 0 {
		o.ImageRef = newest[0].Pinned().String()
		o.UserImage = newest[0].Reference.String()
	}
	return o
}

// Finder returns the origin of a container by the storage ID that CRI-O reports;
// false when that is no record's.
type Finder func(storageID string) (Origin, bool, error)

// reserve is room for the names that a patched container gains, in bytes.
const reserve = 256

// RecordMark is in the bytes of every container the front has created.
func RecordMark() []byte { return []byte(annotations.RecordID) }

// EditContainers puts the true images into an encoded ListContainersResponse or
// StreamContainersResponse. It asks no store: the annotations say it all.
func EditContainers(answer []byte) ([]byte, error) {
	mark := RecordMark()
	if !bytes.Contains(answer, mark) {
		return answer, nil
	}
	return editRepeated(answer, listField, func(raw []byte) ([]byte, error) {
		if !bytes.Contains(raw, mark) {
			return raw, nil
		}
		return patch(raw, containerFields, nil)
	})
}

// EditContainerStatus does so in a ContainerStatusResponse, with find for a
// container that was made behind the front's back.
func EditContainerStatus(answer []byte, find Finder) ([]byte, error) {
	return editStatuses(answer, statusField, find)
}

// EditPodSandboxStatus does so in a PodSandboxStatusResponse.
func EditPodSandboxStatus(answer []byte, find Finder) ([]byte, error) {
	return editStatuses(answer, sandboxStatusesField, find)
}

// EditContainerEvent does so in a ContainerEventResponse.
func EditContainerEvent(event []byte, find Finder) ([]byte, error) {
	return editStatuses(event, eventStatusesField, find)
}

func editStatuses(answer []byte, field protowire.Number, find Finder) ([]byte, error) {
	return editRepeated(answer, field, func(raw []byte) ([]byte, error) {
		return patch(raw, containerStatusFields, find)
	})
}

// patch changes the image, image_ref and image_id of one encoded container, and
// nothing else: user_specified_image and unknown fields stay. The user goes: what
// CRI-O reports are placeholders of a user that is resolved in the pod, and none
// means "not known" (KEP-3619). It returns raw for a container that was not made
// from a record.
func patch(raw []byte, fields fieldNumbers, find Finder) ([]byte, error) {
	var spec, ref, id []byte
	var origin Origin
	rest := make([]byte, 0, len(raw)+reserve)
	err := each(raw, func(number protowire.Number, field, value []byte) error {
		switch number {
		case fields.image:
			spec = value
			return nil
		case fields.ref:
			ref = value
			return nil
		case fields.id:
			id = value
			return nil
		case fields.user:
			return nil
		case fields.annotations:
			origin.note(bytesField(value, mapKeyField), bytesField(value, mapValueField))
		}
		rest = append(rest, field...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	ok := origin.complete()
	if !ok && find != nil && len(id) > 0 && len(bytesField(spec, specImageField)) == 0 {
		// CRI-O names no image: either the record's, or one that lost its names.
		if origin, ok, err = find(string(id)); err != nil {
			return nil, err
		}
	}
	// The annotations are believed only where CRI-O itself names their record.
	if !ok || (string(ref) != origin.StorageID && string(id) != origin.StorageID) {
		return raw, nil
	}
	named := make([]byte, 0, len(spec)+reserve)
	err = each(spec, func(number protowire.Number, field, _ []byte) error {
		if number != specImageField {
			named = append(named, field...)
		}
		return nil
	})
	rest = appendBytes(rest, fields.image, appendString(named, specImageField, origin.UserImage))
	rest = appendString(rest, fields.ref, origin.ImageRef)
	rest = appendString(rest, fields.id, origin.ImageID)
	return rest, err
}
