package front_test

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
)

func TestResolveImage(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	client := huskv1.NewImageServiceClient(n.conn)
	resolve := func(name, handler string) ([]*huskv1.Image, error) {
		answer, err := client.ResolveImage(t.Context(), &huskv1.ResolveImageRequest{Image: name, RuntimeHandler: handler})
		return answer.GetImages(), err
	}
	const plain, secret = "registry.local/plain:1", "registry.local/secret:1"
	twin := n.registry.publish(plain, "web:staff", "plain").Record()
	sealed := n.registry.publish(secret, "web:staff", "secret").Record()
	n.pull(plain)
	id := n.pull(secret)
	n.addImage("registry.local/full:1", hexID('d'), nil, "www")

	// By reference the one record, and all that is known of it.
	found, err := resolve(secret, "")
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(found).To(HaveLen(1))
	got := found[0]
	n.Expect(got.GetImageId()).To(Equal(id))
	n.Expect(got.GetManifestDigest()).To(Equal(sealed.Manifest.String()))
	n.Expect(got.GetReferences()).To(Equal([]string{"registry.local/secret@" + sealed.Manifest.String(), secret}))
	n.Expect([]uint64{uint64(got.GetLayers()), uint64(got.GetEncryptedLayers()), got.GetLayerBytes(), got.GetStoredBytes()}).
		To(Equal([]uint64{2, 2, 1 << 20, uint64(sealed.StoredBytes)}))
	n.Expect(got.GetUser()).To(Equal("web:staff"))
	n.Expect(got.GetRuntimeHandlers()).To(Equal([]string{"husk", "kata"}))
	n.Expect(got.GetSource()).To(Equal(huskv1.Source_SOURCE_RECORD))
	n.Expect(got.GetPulledAt()).To(BeNumerically(">", 0))

	// By image ID, whole or abbreviated, every record of it, the last pulled first.
	for _, name := range []string{id, "sha256:" + id, id[:12]} {
		n.listings.Store(0)
		found, err = resolve(name, "")
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(n.listings.Load()).To(Equal(int32(1)))
		n.Expect(found).To(HaveLen(2), name)
		n.Expect([]string{found[0].GetManifestDigest(), found[1].GetManifestDigest()}).
			To(Equal([]string{sealed.Manifest.String(), twin.Manifest.String()}), name)
	}
	// What CRI-O holds in full comes first, and only for those that can start from it.
	n.addImage(secret, id, nil, "web")
	found, err = resolve(secret, "")
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(found).To(HaveLen(2))
	n.Expect(found[0].GetSource()).To(Equal(huskv1.Source_SOURCE_CRIO))
	n.Expect(found[0].GetReferences()).To(Equal([]string{secret}))
	n.Expect(found[0].GetRuntimeHandlers()).To(BeEmpty())
	n.Expect(found[0].GetStoredBytes()).To(Equal(uint64(1 << 20)))
	n.Expect(found[1].GetSource()).To(Equal(huskv1.Source_SOURCE_RECORD))
	for handler, source := range map[string]huskv1.Source{"husk": huskv1.Source_SOURCE_RECORD, "runc": huskv1.Source_SOURCE_CRIO} {
		found, err = resolve(secret, handler)
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(found).To(HaveLen(1))
		n.Expect(found[0].GetSource()).To(Equal(source))
	}
	found, err = resolve("registry.local/full:1", "")
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(found[0].GetUser()).To(Equal("www"))

	for _, c := range []struct {
		image, handler string
		code           codes.Code
	}{
		{"registry.local/none:1", "", codes.NotFound},
		{hexID('9'), "", codes.NotFound},
		{plain, "runc", codes.NotFound},
		{"registry.local/full:1", "husk", codes.NotFound},
		{sealed.StorageID.String(), "", codes.NotFound}, // no client knows storage IDs
		{sealed.StorageID.String(), "husk", codes.NotFound},
		{plain, "moon", codes.InvalidArgument},
		{"", "", codes.InvalidArgument},
		{"NO/REFERENCE", "", codes.InvalidArgument},
	} {
		_, err := resolve(c.image, c.handler)
		n.Expect(status.Code(err)).To(Equal(c.code), "%s for %q: %v", c.image, c.handler, err)
	}
}

// TestListingsPerCall: with a thousand records a listing is what a call costs.
func TestListingsPerCall(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "web", "")
	id := n.pull(appImage)
	n.registry.publish("registry.local/held:1", "web", "held")
	n.addImage(appImage, hexID('b'), nil, "www")
	n.addImage("registry.local/held:1", hexID('c'), nil, "www")
	husk, config := n.sandbox("husk", "husk")
	runc, _ := n.sandbox("runc", "runc")
	user := &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{RunAsUsername: "www"}}
	create := func(sandbox, image string) func() {
		return func() {
			_, _ = n.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: sandbox, SandboxConfig: config, Config: &cri.ContainerConfig{
				Image: &cri.ImageSpec{Image: image, UserSpecifiedImage: appImage}, Linux: user,
			}})
		}
	}
	for name, call := range map[string]func(){
		"pull": func() { n.pull(appImage) },
		"status": func() {
			n.status(t, &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"})
		},
		"status by ID": func() { n.status(t, &cri.ImageSpec{Image: id}) },
		"list": func() {
			_, _ = n.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: id}}})
		},
		"create":          create(husk, id),
		"create by name":  create(husk, appImage),
		"create, derived": create(husk, hexID('c')),
		"create, unknown": create(husk, hexID('9')),
		"create ordinary": create(runc, hexID('b')),
		"resolve": func() {
			_, _ = huskv1.NewImageServiceClient(n.conn).ResolveImage(t.Context(), &huskv1.ResolveImageRequest{Image: id})
		},
		"container status": func() { _, _ = n.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "container-1"}) },
		"containers":       func() { _, _ = n.ListContainers(t.Context(), new(cri.ListContainersRequest)) },
		"remove": func() {
			_, _ = n.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: appImage}})
		},
		"remove unknown": func() {
			_, _ = n.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: hexID('8')}})
		},
	} {
		n.listings.Store(0)
		call()
		n.Expect(n.listings.Load()).To(BeNumerically("<=", 1), name)
	}
}
