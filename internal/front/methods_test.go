package front

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// decisions says for every CRI method what the front does with it. A method that
// is missing here fails the test: each new version of cri-api forces a decision.
var decisions = map[string]string{
	"Version":                   "forward",
	"RunPodSandbox":             "intercept", // refuses pods that claim what CRI-O says
	"StopPodSandbox":            "forward",
	"RemovePodSandbox":          "forward",
	"PodSandboxStatus":          "intercept", // containers_statuses
	"ListPodSandbox":            "forward",
	"StreamPodSandboxes":        "forward",
	"CreateContainer":           "intercept",
	"StartContainer":            "forward",
	"StopContainer":             "forward",
	"RemoveContainer":           "forward",
	"ListContainers":            "intercept",
	"StreamContainers":          "intercept",
	"ContainerStatus":           "intercept",
	"UpdateContainerResources":  "forward",
	"ReopenContainerLog":        "forward",
	"ExecSync":                  "forward", // the shim sets the user
	"Exec":                      "forward", // answers a URL that clients dial themselves
	"Attach":                    "forward",
	"PortForward":               "forward",
	"ContainerStats":            "forward", // no image in stats
	"ListContainerStats":        "forward",
	"StreamContainerStats":      "forward",
	"PodSandboxStats":           "forward",
	"ListPodSandboxStats":       "forward",
	"StreamPodSandboxStats":     "forward",
	"UpdateRuntimeConfig":       "forward",
	"Status":                    "forward",
	"CheckpointContainer":       "forward", // fails in the VM runtime by itself
	"CheckpointPod":             "forward",
	"RestorePod":                "intercept", // creates containers
	"GetContainerEvents":        "intercept", // containers_statuses
	"ListMetricDescriptors":     "forward",
	"ListPodSandboxMetrics":     "forward",
	"StreamPodSandboxMetrics":   "forward",
	"RuntimeConfig":             "forward",
	"UpdatePodSandboxResources": "forward",
	"ListImages":                "intercept",
	"StreamImages":              "intercept",
	"ImageStatus":               "intercept",
	"PullImage":                 "intercept",
	"RemoveImage":               "intercept",
	"ImageFsInfo":               "forward",   // records are in the same file system
	"ResolveImage":              "intercept", // husk.v1, Husk's own: CRI-O does not have it
}

func TestEveryMethodIsDecided(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	intercepted := (&Server{}).intercepts()
	known := 0
	for _, service := range services() {
		names := make([]string, 0, len(service.Methods)+len(service.Streams))
		for _, m := range service.Methods {
			names = append(names, m.MethodName)
		}
		for _, s := range service.Streams {
			names = append(names, s.StreamName)
		}
		for _, name := range names {
			known++
			g.Expect(decisions).To(HaveKey(name), "decide: intercept or forward?")
			full := fullName(service, name)
			g.Expect(Methods()).To(ContainElement(full))
			if decisions[name] == "intercept" {
				g.Expect(intercepted).To(HaveKey(full))
			} else {
				g.Expect(intercepted).NotTo(HaveKey(full))
			}
		}
	}
	g.Expect(decisions).To(HaveLen(known), "a method that is gone from cri-api")
	g.Expect(Methods()).To(HaveLen(known))
	for full := range intercepted {
		g.Expect(Methods()).To(ContainElement(full))
	}
}

// TestEveryImageFieldIsDecided finds messages of answers that report a
// container's image, so that no method that carries one is forwarded unseen.
func TestEveryImageFieldIsDecided(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	services := cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			if reports(m.Output(), map[protoreflect.FullName]bool{}) {
				g.Expect(decisions[string(m.Name())]).To(Equal("intercept"), string(m.Name()))
			}
		}
	}
}

// reports finds the messages Container, ContainerStatus and Image below m.
func reports(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) bool {
	if seen[m.FullName()] {
		return false
	}
	seen[m.FullName()] = true
	switch m.Name() {
	case "Container", "ContainerStatus", "Image":
		return true
	}
	for i := range m.Fields().Len() {
		if f := m.Fields().Get(i); f.Message() != nil && reports(f.Message(), seen) {
			return true
		}
	}
	return false
}
