package status

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestFieldNumbers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		message proto.Message
		field   protoreflect.Name
		number  protoreflect.FieldNumber
	}{
		{new(cri.ListImagesResponse), "images", listField},
		{new(cri.StreamImagesResponse), "images", listField},
		{new(cri.ListContainersResponse), "containers", listField},
		{new(cri.StreamContainersResponse), "containers", listField},
		{new(cri.Image), "id", imageIDField},
		{new(cri.ImageSpec), "image", specImageField},
		{new(cri.ImageSpec), "runtime_handler", specHandlerField},
		{new(cri.ContainerStatusResponse), "status", statusField},
		{new(cri.PodSandboxStatusResponse), "containers_statuses", sandboxStatusesField},
		{new(cri.ContainerEventResponse), "containers_statuses", eventStatusesField},
		{new(cri.Container), "image", containerFields.image},
		{new(cri.Container), "image_ref", containerFields.ref},
		{new(cri.Container), "image_id", containerFields.id},
		{new(cri.Container), "annotations", containerFields.annotations},
		{new(cri.ContainerStatus), "image", containerStatusFields.image},
		{new(cri.ContainerStatus), "image_ref", containerStatusFields.ref},
		{new(cri.ContainerStatus), "image_id", containerStatusFields.id},
		{new(cri.ContainerStatus), "annotations", containerStatusFields.annotations},
		{new(cri.ContainerStatus), "user", containerStatusFields.user},
	} {
		fields := c.message.ProtoReflect().Descriptor().Fields()
		NewWithT(t).Expect(fields.ByName(c.field).Number()).To(Equal(c.number), "%T %s", c.message, c.field)
	}
}
