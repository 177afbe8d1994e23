package status

import "google.golang.org/protobuf/encoding/protowire"

// Field numbers of api.proto (cri-api, runtime.v1), which never change. A test
// compares them with the descriptors.
const (
	// listField is ListImagesResponse.images, ListContainersResponse.containers
	// and the same of their streaming twins.
	listField            protowire.Number = 1
	imageIDField         protowire.Number = 1  // Image.id
	statusField          protowire.Number = 1  // ContainerStatusResponse.status
	sandboxStatusesField protowire.Number = 3  // PodSandboxStatusResponse.containers_statuses
	eventStatusesField   protowire.Number = 5  // ContainerEventResponse.containers_statuses
	specImageField       protowire.Number = 1  // ImageSpec.image
	specHandlerField     protowire.Number = 19 // ImageSpec.runtime_handler
	mapKeyField          protowire.Number = 1  // of every map entry
	mapValueField        protowire.Number = 2
)

// fieldNumbers are those of a message that reports a container; user is 0 where
// it reports none.
type fieldNumbers struct{ image, ref, annotations, id, user protowire.Number }

var (
	containerFields       = fieldNumbers{image: 4, ref: 5, annotations: 9, id: 10}
	containerStatusFields = fieldNumbers{image: 8, ref: 9, annotations: 13, id: 17, user: 18}
)
