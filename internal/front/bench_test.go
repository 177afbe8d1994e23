package front_test

import (
	"fmt"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
)

// BenchmarkListContainers compares the front with the direct socket.
func BenchmarkListContainers(b *testing.B) {
	for _, guests := range []int{0, 100} {
		n := newNode(b, front.Config{})
		for i := range 100 {
			c := &cri.ContainerStatus{
				Id: fmt.Sprint(i), Image: new(cri.ImageSpec), ImageRef: hexID('a'), ImageId: hexID('a'),
				Labels: map[string]string{}, Annotations: map[string]string{},
			}
			for j := range 8 { // as many as kubelet sets
				c.Labels[fmt.Sprint("io.kubernetes.label.", j)] = hexID('l')
				c.Annotations[fmt.Sprint("io.kubernetes.annotation.", j)] = hexID('m')
			}
			if i < guests {
				c.Annotations[annotations.RecordID], c.Annotations[annotations.ImageID] = hexID('a'), hexID('b')
				c.Annotations[annotations.ImageRef], c.Annotations[annotations.UserImage] = appImage, appImage
			}
			n.crio.containers = append(n.crio.containers, c)
		}
		for name, client := range map[string]cri.RuntimeServiceClient{
			"front": n.RuntimeServiceClient, "direct": cri.NewRuntimeServiceClient(n.direct),
		} {
			b.Run(fmt.Sprintf("guests=%d/%s", guests, name), func(b *testing.B) {
				for b.Loop() {
					if _, err := client.ListContainers(b.Context(), new(cri.ListContainersRequest)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkVersion compares a forwarded call with the direct socket.
func BenchmarkVersion(b *testing.B) {
	n := newNode(b, front.Config{})
	for name, client := range map[string]cri.RuntimeServiceClient{
		"front": n.RuntimeServiceClient, "direct": cri.NewRuntimeServiceClient(n.direct),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := client.Version(b.Context(), new(cri.VersionRequest)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
