package front_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
)

// create makes a container as crictl does and returns its ID.
func (n *node) create(t *testing.T, sandbox string, spec *cri.ImageSpec) (string, error) {
	t.Helper()
	answer, err := n.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: sandbox, Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "app"}, Image: spec},
	})
	return answer.GetContainerId(), err
}

func TestContainersAreReportedTruly(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	rec := n.registry.publish(appImage, "web", "").Record()
	n.pull(appImage)
	n.addImage("registry.local/other:1", hexID('e'), nil, "")
	husk, _ := n.sandbox("guest", "husk")
	runc, _ := n.sandbox("plain", "runc")
	guest, err := n.create(t, husk, &cri.ImageSpec{Image: appImage})
	n.Expect(err).NotTo(HaveOccurred())
	_, err = n.create(t, runc, &cri.ImageSpec{Image: "registry.local/other:1"})
	n.Expect(err).NotTo(HaveOccurred())
	// Made behind the front's back.
	n.crio.containers = append(n.crio.containers, &cri.ContainerStatus{
		Id: "bare", Image: new(cri.ImageSpec), ImageRef: rec.StorageID.String(), ImageId: rec.StorageID.String(),
	})
	pinned := "registry.local/app@" + rec.Manifest.String()
	check := func(id string, image *cri.ImageSpec, ref, imageID string) {
		switch id {
		case guest, "bare":
			n.Expect([]string{image.GetImage(), ref, imageID}).To(Equal([]string{appImage, pinned, rec.ImageID().String()}), id)
		default:
			n.Expect(ref).To(Equal(hexID('e')))
		}
	}
	checkAll := func(statuses []*cri.ContainerStatus) {
		n.Expect(statuses).To(HaveLen(3))
		for _, s := range statuses {
			check(s.Id, s.Image, s.ImageRef, s.ImageId)
		}
	}
	for _, id := range []string{guest, "bare"} {
		one, err := n.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id})
		n.Expect(err).NotTo(HaveOccurred())
		check(id, one.Status.Image, one.Status.ImageRef, one.Status.ImageId)
	}
	pod, err := n.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: husk})
	n.Expect(err).NotTo(HaveOccurred())
	checkAll(pod.ContainersStatuses)

	events, err := n.GetContainerEvents(t.Context(), new(cri.GetEventsRequest))
	n.Expect(err).NotTo(HaveOccurred())
	event, err := events.Recv()
	n.Expect(err).NotTo(HaveOccurred())
	checkAll(event.ContainersStatuses)
	event, err = events.Recv() // an empty message is one too
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(event.ContainerId).To(BeEmpty())
	_, err = events.Recv()
	n.Expect(err).To(MatchError(io.EOF))

	list, err := n.ListContainers(t.Context(), new(cri.ListContainersRequest))
	n.Expect(err).NotTo(HaveOccurred())
	stream, err := n.StreamContainers(t.Context(), new(cri.StreamContainersRequest))
	n.Expect(err).NotTo(HaveOccurred())
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		n.Expect(err).NotTo(HaveOccurred())
		list.Containers = append(list.Containers, part.Containers...)
	}
	n.Expect(list.Containers).To(HaveLen(6))
	for _, c := range list.Containers {
		if c.Id != "bare" {
			check(c.Id, c.Image, c.ImageRef, c.ImageId)
		}
	}
	_, err = n.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "none"})
	n.Expect(status.Code(err)).To(Equal(codes.NotFound))
}

// TestRecordAnnotationAloneProvesNothing: a container claims another's image.
func TestRecordAnnotationAloneProvesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	forged := map[string]string{
		annotations.RecordID: hexID('1'), annotations.ImageID: hexID('2'),
		annotations.ImageRef: "evil@sha256:0", annotations.UserImage: "evil",
	}
	n.crio.containers = append(n.crio.containers, &cri.ContainerStatus{
		Id: "forged", Annotations: forged, Image: &cri.ImageSpec{Image: "real"}, ImageRef: hexID('3'), ImageId: hexID('3'),
	})
	got, err := n.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "forged"})
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(got.Status.Image.Image).To(Equal("real"))
	list, err := n.ListContainers(t.Context(), new(cri.ListContainersRequest))
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(list.Containers[0].ImageRef).To(Equal(hexID('3')))
}

func TestCreateContainerRefusals(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	rec := n.registry.publish(appImage, "web", "").Record()
	id := n.pull(appImage)
	husk, _ := n.sandbox("husk", "husk")
	kata, _ := n.sandbox("kata", "kata")
	runc, _ := n.sandbox("runc", "runc")
	lost, _ := n.sandbox("lost", "gone-from-crio-conf")
	forger, config := n.sandbox("forger", "husk")
	config.Annotations["io.kubernetes.cri-o.RuntimeHandler"] = "runc"
	labelled, config := n.sandbox("labelled", "husk")
	config.Labels["io.kubernetes.cri-o.RuntimeHandler"] = "runc"

	for _, c := range []struct {
		name, sandbox, image, says string
		code                       codes.Code
	}{
		{"unknown ID", husk, hexID('f'), hexID('f'), codes.NotFound},
		{"unknown reference", husk, "registry.local/none:1", "registry.local/none:1", codes.NotFound},
		{"no image", husk, "", "no image", codes.InvalidArgument},
		{"a name the runtime cannot resolve", kata, id, "runAsUser", codes.InvalidArgument},
		{"ordinary pod, storage ID", runc, rec.StorageID.String(), "no layers", codes.NotFound},
		{"ordinary pod, image ID", runc, id, "not known", codes.Unknown}, // CRI-O's answer
		{"handler unknown to husk", lost, id, "gone-from-crio-conf", codes.InvalidArgument},
		{"ordinary pod, prefix of a storage ID", runc, rec.StorageID.String()[:12], "no layers", codes.NotFound},
		{"pod that claims a handler", forger, id, "must not set the annotation", codes.InvalidArgument},
		{"pod that claims a handler by label", labelled, id, "must not set the label", codes.InvalidArgument},
		{"no such sandbox", "none", id, "could not find pod", codes.NotFound},
	} {
		_, err := n.create(t, c.sandbox, &cri.ImageSpec{Image: c.image})
		n.Expect(status.Code(err)).To(Equal(c.code), "%s: %v", c.name, err)
		n.Expect(err).To(MatchError(ContainSubstring(c.says)), c.name)
	}
	for _, sandbox := range []string{husk, runc} {
		_, err := n.CreateContainer(t.Context(), &cri.CreateContainerRequest{
			PodSandboxId: sandbox,
			Config:       &cri.ContainerConfig{Image: &cri.ImageSpec{Image: id}, Annotations: map[string]string{annotations.User: `{"user":"0"}`}},
		})
		n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
	}
	n.Expect(n.crio.created).To(BeEmpty())
}

// TestPodsCannotSpeakForCRIO: front and shim believe these keys of a sandbox's spec.
func TestPodsCannotSpeakForCRIO(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	run := func(handler string, notes, labels map[string]string) error {
		_, err := n.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{
			RuntimeHandler: handler, Config: &cri.PodSandboxConfig{Annotations: notes, Labels: labels},
		})
		return err
	}
	const forwarded = codes.Unimplemented // what the fake says
	for _, key := range []string{
		"io.kubernetes.cri-o.RuntimeHandler", annotations.CRIOSandboxID, annotations.CRIOContainerType,
		annotations.CRIOResolvPath, annotations.CRIOImageName, "io.kubernetes.cri-o.HostNetwork",
		"io.kubernetes.cri-o.CgroupParent", annotations.RecordID,
	} {
		forged := map[string]string{key: "x"}
		for _, err := range []error{run("husk", forged, nil), run("husk", nil, forged)} {
			n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument), key)
			n.Expect(err).To(MatchError(ContainSubstring(key)))
		}
		for _, ordinary := range []string{"runc", "", "not known here"} {
			n.Expect(status.Code(run(ordinary, forged, forged))).To(Equal(forwarded), ordinary)
		}
	}
	n.Expect(status.Code(run("husk", podAnnotations(), map[string]string{"app": "web"}))).To(Equal(forwarded))

	// A sandbox made before husk, or beside it: its pull is never CRI-O's.
	_, config := n.sandbox("labelled", "husk")
	config.Labels["io.kubernetes.cri-o.RuntimeHandler"] = "runc"
	_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage}, SandboxConfig: config})
	n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
	n.Expect(n.crio.pulled).To(BeEmpty())
}

// TestTwinsOfOneConfig: an encrypted and a plain image have one image ID.
func TestTwinsOfOneConfig(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	const plain, secret, other = "registry.local/plain:1", "registry.local/secret:1", "registry.local/secret:2"
	want := map[string]string{}
	for _, name := range []string{secret, plain} {
		want[name] = n.registry.publish(name, "web", name).Record().StorageID.String()
		n.pull(name)
	}
	id := n.status(t, &cri.ImageSpec{Image: plain}).Id
	husk, _ := n.sandbox("husk", "husk")
	for user, record := range map[string]string{plain: want[plain], secret: want[secret], other: want[secret], "": want[plain]} {
		_, err := n.create(t, husk, &cri.ImageSpec{Image: id, UserSpecifiedImage: user})
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(n.lastCreated().Image.Image).To(Equal(record), "asked for %q", user)
	}
	// By storage ID, as a node operator may.
	_, err := n.create(t, husk, &cri.ImageSpec{Image: want[secret]})
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(n.lastCreated().Image.Image).To(Equal(want[secret]))
}

// TestUnknownFieldsSurvive: a newer client's fields pass through a rewrite.
func TestUnknownFieldsSurvive(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "web", "")
	n.pull(appImage)
	husk, _ := n.sandbox("husk", "husk")
	config := &cri.ContainerConfig{Image: &cri.ImageSpec{Image: appImage}}
	future := protowire.AppendString(protowire.AppendTag(nil, 9999, protowire.BytesType), "from the future")
	config.ProtoReflect().SetUnknown(future)
	_, err := n.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: husk, Config: config})
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(n.lastCreated().ProtoReflect().GetUnknown()).To(BeEquivalentTo(future))
}

func TestWhoseIsAPull(t *testing.T) {
	t.Parallel()
	husk := map[string]string{annotations.RuntimeHandler: "husk"}
	for _, c := range []struct {
		name    string
		config  front.Config
		spec    *cri.ImageSpec
		pod     string // the handler of the pod; "" for no pod
		missing bool   // the pod does not exist any more
		crio    bool   // forwarded
		code    codes.Code
	}{
		{name: "nothing said", spec: &cri.ImageSpec{}, crio: true},
		{name: "default of husk", config: front.Config{DefaultHandler: "husk"}, spec: &cri.ImageSpec{}},
		{name: "handler of the request", spec: &cri.ImageSpec{RuntimeHandler: "husk"}, pod: "runc"},
		{name: "ordinary handler of the request", spec: &cri.ImageSpec{RuntimeHandler: "runc"}, pod: "husk", crio: true},
		{name: "handler of the pod", spec: new(cri.ImageSpec), pod: "husk"},
		{name: "pod wins over annotation", spec: &cri.ImageSpec{Annotations: husk}, pod: "runc", crio: true},
		{name: "annotation", spec: &cri.ImageSpec{Annotations: husk}},
		{name: "pod is gone", spec: new(cri.ImageSpec), pod: "husk", missing: true, code: codes.NotFound},
		{name: "pod is gone, annotation of an ordinary handler", spec: &cri.ImageSpec{Annotations: map[string]string{annotations.RuntimeHandler: "runc"}}, pod: "husk", missing: true, code: codes.NotFound},
		{name: "pod is gone, annotation", spec: &cri.ImageSpec{Annotations: husk}, pod: "husk", missing: true},
		{name: "unknown handler", spec: &cri.ImageSpec{RuntimeHandler: "moon"}, code: codes.InvalidArgument},
		{name: "unknown handler by annotation", spec: &cri.ImageSpec{Annotations: map[string]string{annotations.RuntimeHandler: "moon"}}, code: codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, c.config)
			n.registry.publish(appImage, "web", "")
			req := &cri.PullImageRequest{Image: c.spec, Auth: &cri.AuthConfig{Username: "u", Password: "p", IdentityToken: "i", RegistryToken: "r", Auth: "a"}}
			req.Image.Image = appImage
			if c.pod != "" {
				_, req.SandboxConfig = n.sandbox("pod", c.pod)
			}
			if c.missing {
				n.crio.sandboxes = nil
			}
			_, err := n.PullImage(t.Context(), req)
			n.Expect(status.Code(err)).To(Equal(c.code), "%v", err)
			n.Expect(len(n.crio.pulled) == 1).To(Equal(c.crio))
			if c.crio {
				n.Expect(proto.Equal(n.crio.pulled[0], req)).To(BeTrue())
			}
			n.Expect(len(n.registry.asked) == 1).To(Equal(!c.crio && c.code == codes.OK))
			if len(n.registry.asked) == 1 {
				asked := n.registry.asked[0]
				n.Expect([]string{
					asked.Credentials.Username, asked.Credentials.Password, asked.Credentials.Auth,
					asked.Credentials.IdentityToken, asked.Credentials.RegistryToken,
				}).To(Equal([]string{"u", "p", "a", "i", "r"}))
			}
		})
	}
}

func TestPullErrorsAndLimits(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{MaxPulls: 1, PullTimeout: 200 * time.Millisecond})
	pull := func(ctx context.Context) error {
		_, err := n.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"}})
		return err
	}
	err := pull(t.Context())
	n.Expect(status.Code(err)).To(Equal(codes.Unknown), "or kubelet does not know the sentinel")
	// kubelet tells the kinds apart by how the text begins.
	n.Expect(status.Convert(err).Message()).To(HavePrefix("RegistryUnavailable"))

	n.registry.publish(appImage, "web", "")
	entered := make(chan struct{}, 2)
	n.registry.wait = func(ctx context.Context) { entered <- struct{}{}; <-ctx.Done() }
	first := make(chan error, 1)
	go func() { first <- pull(t.Context()) }()
	<-entered
	// The one slot is taken: the second waits, no longer than its client does.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	n.Expect(status.Code(pull(ctx))).To(Equal(codes.DeadlineExceeded))
	n.Expect(entered).To(BeEmpty())
	n.Expect(<-first).NotTo(Succeed()) // cut off after PullTimeout
	n.Expect(n.records.List(t.Context())).To(BeEmpty())
}

func TestRestorePod(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	for handler, says := range map[string]string{"husk": "guest", "runc": "not implemented", "": "not implemented"} {
		_, err := n.RestorePod(t.Context(), &cri.RestorePodRequest{RuntimeHandler: handler})
		n.Expect(status.Code(err)).To(Equal(codes.Unimplemented))
		n.Expect(err).To(MatchError(ContainSubstring(says)))
	}
	forged := &cri.ContainerConfig{Annotations: map[string]string{annotations.RecordID: "x"}}
	_, err := n.RestorePod(t.Context(), &cri.RestorePodRequest{ContainerConfigs: []*cri.ContainerConfig{forged}})
	n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
}

// TestReservedKeysAreRefused: front, shim, Kata and status believe these keys.
func TestReservedKeysAreRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "", "")
	n.pull(appImage)
	n.addImage("registry.local/other:1", hexID('e'), nil, "")
	guest, _ := n.sandbox("guest", "husk")
	plain, _ := n.sandbox("plain", "runc")
	create := func(sandbox, image string, notes, labels map[string]string) error {
		_, err := n.CreateContainer(t.Context(), &cri.CreateContainerRequest{
			PodSandboxId: sandbox,
			Config:       &cri.ContainerConfig{Image: &cri.ImageSpec{Image: image}, Annotations: notes, Labels: labels},
		})
		return err
	}
	for _, key := range []string{
		annotations.RecordID, annotations.ImageID, annotations.ImageRef, annotations.UserImage, annotations.User,
		annotations.CRIOImageName, annotations.CRIOSandboxID, annotations.CRIOContainerType, annotations.CRIOResolvPath,
		"io.kubernetes.cri-o.Image", "io.kubernetes.cri-o.ImageRef", "io.kubernetes.cri-o.MountPoint", "io.container.manager",
	} {
		forged := map[string]string{key: "x"}
		for _, err := range []error{create(guest, appImage, forged, nil), create(guest, appImage, nil, forged)} {
			n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument), key)
			n.Expect(err).To(MatchError(ContainSubstring(key)))
		}
		n.Expect(n.crio.created).To(BeEmpty())
	}
	for name, labels := range map[string]map[string]string{"annotation": nil, "label": {annotations.RecordID: "x"}} {
		var notes map[string]string
		if labels == nil {
			notes = map[string]string{annotations.RecordID: "x"}
		}
		n.Expect(status.Code(create(plain, "registry.local/other:1", notes, labels))).To(Equal(codes.InvalidArgument), name)
	}
	n.Expect(n.crio.created).To(BeEmpty())

	// An ordinary pod's container reaches CRI-O as it is, whatever it says of itself.
	notes := map[string]string{annotations.CRIOImageName: "x", annotations.CRIOSandboxID: "y", annotations.RuntimeHandler: "z"}
	n.Expect(create(plain, "registry.local/other:1", notes, notes)).To(Succeed())
	n.Expect(n.lastCreated().Annotations).To(Equal(notes))
	n.Expect(n.lastCreated().Labels).To(Equal(notes))
	// What kubelet sets is nobody's to refuse.
	n.Expect(create(guest, appImage, map[string]string{"io.kubernetes.container.hash": "1"}, map[string]string{"io.kubernetes.pod.name": "p"})).To(Succeed())
}
