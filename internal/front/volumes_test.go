package front_test

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
)

// TestImageVolumes: CRI-O mounts whatever has the name or the ID, and a record is an
// empty folder.
func TestImageVolumes(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	rec := n.registry.publish(appImage, "", "").Record()
	id := n.pull(appImage)
	const other = "registry.local/other:1"
	n.addImage(other, hexID('e'), nil, "")
	husk, _ := n.sandbox("husk", "husk")
	runc, _ := n.sandbox("runc", "runc")
	request := func(sandbox, image string, volumes ...string) *cri.CreateContainerRequest {
		config := &cri.ContainerConfig{Image: &cri.ImageSpec{Image: image}, Mounts: []*cri.Mount{{HostPath: "/h", ContainerPath: "/c"}}}
		for _, volume := range volumes {
			config.Mounts = append(config.Mounts, &cri.Mount{ContainerPath: "/v", Image: &cri.ImageSpec{Image: volume}})
		}
		return &cri.CreateContainerRequest{PodSandboxId: sandbox, Config: config}
	}
	for name, volumes := range map[string][]string{
		"image ID":             {id},
		"reference":            {appImage},
		"short reference":      {"registry.local/app@" + rec.Manifest.String()},
		"prefix of the ID":     {id[:12]},
		"storage ID":           {rec.StorageID.String()},
		"prefix of storage ID": {rec.StorageID.String()[:12]},
		"the second":           {other, appImage},
	} {
		n.listings.Store(0)
		_, err := n.CreateContainer(t.Context(), request(runc, other, volumes...))
		n.Expect(status.Code(err)).To(Equal(codes.NotFound), name)
		n.Expect(err).To(MatchError(ContainSubstring("no layers")), name)
		n.Expect(n.listings.Load()).To(Equal(int32(1)), name)
	}
	n.Expect(n.crio.created).To(BeEmpty())

	// CRI-O's own images, artifacts and names that nobody can read are CRI-O's.
	for _, volumes := range [][]string{{other}, {hexID('e'), other}, {"registry.local/artifact:1"}, {"no reference at all"}, nil} {
		want := request(runc, other, volumes...)
		_, err := n.CreateContainer(t.Context(), want)
		n.Expect(err).NotTo(HaveOccurred(), "%v", volumes)
		n.Expect(proto.Equal(n.lastCreated(), want.Config)).To(BeTrue())
	}
	// No image of the host is mounted into a guest-pull container, whoever holds it.
	made := len(n.crio.created)
	for _, volume := range []string{id, appImage, other, hexID('e'), "registry.local/artifact:1"} {
		_, err := n.CreateContainer(t.Context(), request(husk, appImage, volume))
		n.Expect(status.Code(err)).To(Equal(codes.Unimplemented), volume)
		n.Expect(err).To(MatchError(ContainSubstring("image volumes")), volume)
	}
	n.Expect(n.crio.created).To(HaveLen(made))
}

// TestRecordsStayRefusedWithoutHandlers: the last guest-pull handler has left
// crio.conf, its records are still there.
func TestRecordsStayRefusedWithoutHandlers(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	rec := n.registry.publish(appImage, "", "").Record()
	id := n.pull(appImage)
	runc, _ := n.sandbox("runc", "runc")
	n.server.Reconfigure(front.Config{Handlers: fakeHandlers{"runc": {Name: "runc"}}})
	_, err := n.create(t, runc, &cri.ImageSpec{Image: rec.StorageID.String()})
	n.Expect(status.Code(err)).To(Equal(codes.NotFound))
	_, err = n.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: runc, Config: &cri.ContainerConfig{
		Mounts: []*cri.Mount{{Image: &cri.ImageSpec{Image: id}}},
	}})
	n.Expect(status.Code(err)).To(Equal(codes.NotFound))
	n.Expect(n.crio.created).To(BeEmpty())
}
