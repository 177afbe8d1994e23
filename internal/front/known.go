package front

import (
	"slices"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
)

// services are those whose methods the front knows by name.
func services() []grpc.ServiceDesc {
	return []grpc.ServiceDesc{cri.RuntimeService_ServiceDesc, cri.ImageService_ServiceDesc, huskv1.ImageService_ServiceDesc}
}

func fullName(service grpc.ServiceDesc, method string) string {
	return "/" + service.ServiceName + "/" + method
}

// Methods returns the full names of the methods the front knows, sorted: those of the
// CRI and Husk's own. A name that a client makes up is not among them.
func Methods() []string {
	var names []string
	for _, service := range services() {
		for _, m := range service.Methods {
			names = append(names, fullName(service, m.MethodName))
		}
		for _, m := range service.Streams {
			names = append(names, fullName(service, m.StreamName))
		}
	}
	slices.Sort(names)
	return names
}
