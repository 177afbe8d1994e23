package front_test

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
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

// TestImageVolumesOfPodsThatPull: the runtime is told of them, by digest, and CRI-O is not.
func TestImageVolumesOfPodsThatPull(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{Handlers: layerHandlers()})
	n.registry.publish(appImage, "", "")
	const data, held = "registry.local/data:1", "registry.local/held:1"
	volume := n.registry.publish(data, "", "volume")
	id := n.pull(appImage)
	n.pull(data)
	inFull := n.registry.publish(held, "root", "in full") // which kubelet found with CRI-O, and did not pull
	n.addImage(held, inFull.ConfigDigest.ImageID().String(), nil, "")
	husk, _ := n.sandbox("husk", "husk")
	create := func(mounts ...*cri.Mount) error {
		_, err := n.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: husk, Config: &cri.ContainerConfig{
			Image: &cri.ImageSpec{Image: id, UserSpecifiedImage: appImage}, Mounts: mounts,
		}})
		return err
	}
	mount := func(image, to, sub string) *cri.Mount {
		return &cri.Mount{ContainerPath: to, ImageSubPath: sub, Readonly: true, Image: &cri.ImageSpec{Image: image, UserSpecifiedImage: image}}
	}
	ordinary := &cri.Mount{HostPath: "/h", ContainerPath: "/c"}
	n.Expect(create(ordinary, mount(data, "/models/", ""), mount(held, "/held", "etc/app"))).To(Succeed())
	got := n.lastCreated()
	n.Expect(got.Mounts).To(HaveLen(1))
	n.Expect(proto.Equal(got.Mounts[0], ordinary)).To(BeTrue())
	n.Expect(got.Annotations[annotations.ImageMounts]).To(MatchJSON(`[
		{"reference":"registry.local/data@` + volume.Manifest.Digest.String() + `","destination":"/models"},
		{"reference":"registry.local/held@` + inFull.Manifest.Digest.String() + `","destination":"/held","subPath":"etc/app"}]`))
	n.Expect(create(ordinary)).To(Succeed())
	n.Expect(n.lastCreated().Annotations).NotTo(HaveKey(annotations.ImageMounts))

	made := len(n.crio.created)
	both := mount(data, "/a", "")
	both.HostPath = "/etc"
	options := mount(data, "/a", "")
	options.MountOptions = []string{"nodev", "suid"}
	many := make([]*cri.Mount, 200)
	for i := range many {
		many[i] = mount(data, "/a", "")
	}
	for name, c := range map[string]struct {
		mounts []*cri.Mount
		code   codes.Code
	}{
		"an image that was not pulled": {[]*cri.Mount{mount("registry.local/none:1", "/a", "")}, codes.NotFound},
		"no place":                     {[]*cri.Mount{mount(data, "", "")}, codes.InvalidArgument},
		"a relative place":             {[]*cri.Mount{mount(data, "a", "")}, codes.InvalidArgument},
		"the root":                     {[]*cri.Mount{mount(data, "/a/..", "")}, codes.InvalidArgument},
		"out of it":                    {[]*cri.Mount{mount(data, "/a", "../etc")}, codes.InvalidArgument},
		"out of it, from its root":     {[]*cri.Mount{mount(data, "/a", "/etc")}, codes.InvalidArgument},
		"a host path too":              {[]*cri.Mount{both}, codes.InvalidArgument},
		"other options":                {[]*cri.Mount{options}, codes.InvalidArgument},
		"200 of them":                  {many, codes.InvalidArgument},
	} {
		n.Expect(status.Code(create(c.mounts...))).To(Equal(c.code), name)
	}
	n.Expect(n.crio.created).To(HaveLen(made))
}

// TestImageVolumesHaveTheHandlersLimits: what it may not run it may not mount.
func TestImageVolumesHaveTheHandlersLimits(t *testing.T) {
	t.Parallel()
	handlers := layerHandlers()
	h := handlers["husk"]
	h.MaxLayers = 2
	handlers["husk"] = h
	n := newNode(t, front.Config{Handlers: handlers})
	n.registry.publish(appImage, "", "")
	const data = "registry.local/data:1"
	large := n.registry.publish(data, "", "volume")
	large.Layers = 3
	n.registry.images[data] = large
	id := n.pull(appImage)
	n.pull(data)
	husk, _ := n.sandbox("husk", "husk")
	_, err := n.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: husk, Config: &cri.ContainerConfig{
		Image: &cri.ImageSpec{Image: id}, Mounts: []*cri.Mount{{ContainerPath: "/v", Image: &cri.ImageSpec{Image: data}}},
	}})
	n.Expect(status.Code(err)).To(Equal(codes.ResourceExhausted))
	n.Expect(n.crio.created).To(BeEmpty())
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
