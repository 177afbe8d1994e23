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

// View is how a client is to see containers made from records.
type View struct {
	// Handler is the runtime handler that records are listed with ([Image]). kubelet's
	// image GC, with the RuntimeClassInImageCriApi gate, takes an image to be used only if
	// a container names it with the same handler. Zero: none is named.
	Handler string
	// Find knows the records, for containers that were made behind the front's back.
	// Zero: those stay as CRI-O reports them.
	Find Finder
}

// reserve is room for the names that a patched container gains, in bytes.
const reserve = 256

// RecordMark is in the bytes of every container the front has created.
func RecordMark() []byte { return []byte(annotations.RecordID) }

// EditContainers puts the true images into an encoded ListContainersResponse or
// StreamContainersResponse. It asks nobody: the annotations say it all.
func EditContainers(answer []byte, view View) ([]byte, error) {
	mark := RecordMark()
	if !bytes.Contains(answer, mark) {
		return answer, nil
	}
	return editRepeated(answer, listField, func(raw []byte) ([]byte, error) {
		if !bytes.Contains(raw, mark) {
			return raw, nil
		}
		return patch(raw, containerFields, View{Handler: view.Handler})
	})
}

// EditContainerStatus does so in a ContainerStatusResponse.
func EditContainerStatus(answer []byte, view View) ([]byte, error) {
	return editStatuses(answer, statusField, view)
}

// EditPodSandboxStatus does so in a PodSandboxStatusResponse.
func EditPodSandboxStatus(answer []byte, view View) ([]byte, error) {
	return editStatuses(answer, sandboxStatusesField, view)
}

// EditContainerEvent does so in a ContainerEventResponse.
func EditContainerEvent(event []byte, view View) ([]byte, error) {
	return editStatuses(event, eventStatusesField, view)
}

func editStatuses(answer []byte, field protowire.Number, view View) ([]byte, error) {
	return editRepeated(answer, field, func(raw []byte) ([]byte, error) {
		return patch(raw, containerStatusFields, view)
	})
}

// patch changes the image, image_ref and image_id of one encoded container, and
// nothing else: user_specified_image and unknown fields stay. The user goes: what
// CRI-O reports are placeholders of a user that is resolved in the pod, and none
// means "not known" (KEP-3619). It returns raw for a container that was not made
// from a record.
func patch(raw []byte, fields fieldNumbers, view View) ([]byte, error) {
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
	if !ok && view.Find != nil && len(id) > 0 && len(bytesField(spec, specImageField)) == 0 {
		// CRI-O names no image: either the record's, or one that lost its names.
		if origin, ok, err = view.Find(string(id)); err != nil {
			return nil, err
		}
	}
	// The annotations are believed only where CRI-O itself names their record.
	if !ok || (string(ref) != origin.StorageID && string(id) != origin.StorageID) {
		return raw, nil
	}
	named := make([]byte, 0, len(spec)+reserve)
	err = each(spec, func(number protowire.Number, field, _ []byte) error {
		if number != specImageField && number != specHandlerField {
			named = append(named, field...)
		}
		return nil
	})
	named = appendString(named, specImageField, origin.UserImage)
	if view.Handler != "" {
		named = appendString(named, specHandlerField, view.Handler)
	}
	rest = appendBytes(rest, fields.image, named)
	rest = appendString(rest, fields.ref, origin.ImageRef)
	rest = appendString(rest, fields.id, origin.ImageID)
	return rest, err
}
