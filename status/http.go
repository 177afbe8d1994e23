package status

import (
	"encoding/json"
	"errors"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The fields of CRI-O's ContainerInfo (pkg/types) that name the image.
const (
	httpImageField    = "image"
	httpImageRefField = "image_ref"
)

// EditContainerInfo puts the true image into CRI-O's answer to GET /containers/<id>,
// which cAdvisor reads. Of a container that was not made from a record, and of what is
// no container, it returns answer itself. find is for a container that was made behind
// the front's back.
func EditContainerInfo(answer []byte, find Finder) ([]byte, error) {
	var info struct {
		Image       string            `json:"image"`
		ImageRef    string            `json:"image_ref"`
		Annotations map[string]string `json:"annotations"`
	}
	fields := map[string]json.RawMessage{}
	errs := errors.Join(json.Unmarshal(answer, &info), json.Unmarshal(answer, &fields))
	if errs != nil {
		return answer, nil //nolint:nilerr // an answer that is no container is not Husk's to judge
	}
	var origin Origin
	for key, value := range info.Annotations {
		origin.note([]byte(key), []byte(value))
	}
	ok := origin.complete()
	if !ok && find != nil && info.Image == "" && info.ImageRef != "" {
		var err error
		if origin, ok, err = find(info.ImageRef); err != nil {
			return nil, err
		}
	}
	// As for the CRI: annotations are believed only where CRI-O names their record.
	if !ok || info.ImageRef != origin.StorageID {
		return answer, nil
	}
	for name, value := range map[string]string{httpImageField: origin.UserImage, httpImageRefField: origin.ImageRef} {
		encoded, err := json.Marshal(value)
		if err != nil {
			return nil, errdefs.New(errdefs.Internal, "encode the image of a container", err)
		}
		fields[name] = encoded
	}
	edited, err := json.Marshal(fields)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "encode a container", err)
	}
	return edited, nil
}
