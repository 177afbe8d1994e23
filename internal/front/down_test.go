package front_test

import (
	"errors"
	"io"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
)

// TestWithoutCRIO: what only Husk knows is answered; everything else says who is
// missing, and nothing is half done.
func TestWithoutCRIO(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "web", "")
	id := n.pull(appImage)
	_, config := n.sandbox("pod", "husk")
	n.stopCRIO()
	ctx := t.Context()
	spec := func(handler string) *cri.ImageSpec { return &cri.ImageSpec{Image: appImage, RuntimeHandler: handler} }
	resolve := func(handler string) error {
		_, err := huskv1.NewImageServiceClient(n.conn).ResolveImage(ctx, &huskv1.ResolveImageRequest{Image: appImage, RuntimeHandler: handler})
		return err
	}
	stream := func(handler string) error {
		images, err := n.StreamImages(ctx, &cri.StreamImagesRequest{Filter: &cri.ImageFilter{Image: spec(handler)}})
		for err == nil {
			_, err = images.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	call := func(handler string) map[string]error {
		_, pulled := n.PullImage(ctx, &cri.PullImageRequest{Image: spec(handler)})
		_, found := n.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec(handler)})
		_, listed := n.ListImages(ctx, &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: spec(handler)}})
		return map[string]error{"pull": pulled, "status": found, "list": listed, "stream": stream(handler), "resolve": resolve(handler)}
	}
	for name, err := range call("husk") {
		n.Expect(err).NotTo(HaveOccurred(), name)
	}
	for _, handler := range []string{"", "runc"} {
		for name, err := range call(handler) {
			n.Expect(status.Code(err)).To(Equal(codes.Unavailable), "%s for %q: %v", name, handler, err)
		}
	}
	_, err := n.PullImage(ctx, &cri.PullImageRequest{Image: spec(""), SandboxConfig: config})
	n.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	for _, name := range []string{id, appImage} {
		_, err = n.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
		n.Expect(status.Code(err)).To(Equal(codes.Unavailable), name)
	}
	_, err = n.create(t, "sandbox-pod", spec(""))
	n.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	_, err = n.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: "c"})
	n.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	_, err = n.ListContainers(ctx, new(cri.ListContainersRequest))
	n.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	n.Expect(n.records.List(ctx)).To(HaveLen(1))
}
