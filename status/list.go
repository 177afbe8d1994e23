package status

import (
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// MergeImages puts the true images in front of those in an encoded
// ListImagesResponse or StreamImagesResponse, and leaves out the IDs that are
// hidden: what CRI-O shows for records. Ordinary images stay last because kubelet
// without the RuntimeClassInImageCriApi gate keeps the last size it sees of an ID.
func MergeImages(answer []byte, images []*cri.Image, hidden map[string]bool) ([]byte, error) {
	merged, err := proto.Marshal(&cri.ListImagesResponse{Images: images})
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "encode images", err)
	}
	rest, err := editRepeated(answer, listField, func(image []byte) ([]byte, error) {
		if hidden[string(bytesField(image, imageIDField))] {
			return nil, nil
		}
		return image, nil
	})
	return append(merged, rest...), err
}
