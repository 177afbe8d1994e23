package front_test

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
)

const appImage = "registry.local/app:1"

// kubelet replays the calls of kubelet 1.34 for one container (as traced: "What
// kubelet sends").
type kubelet struct {
	*node
	policy  string // Always, IfNotPresent, Never
	gate    bool   // RuntimeClassInImageCriApi
	handler string
	user    *int64 // runAsUser of the pod
	attempt uint32
}

// start makes the calls of one container start, after RunPodSandbox.
func (k *kubelet) start(t *testing.T, sandbox string, config *cri.PodSandboxConfig) error {
	t.Helper()
	ctx, image := t.Context(), appImage
	spec := func() *cri.ImageSpec {
		s := &cri.ImageSpec{Image: image, Annotations: podAnnotations()}
		if k.gate {
			s.RuntimeHandler = k.handler
		}
		return s
	}
	if _, err := k.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: sandbox}); err != nil {
		return err
	}
	ref := ""
	if k.policy != "Always" {
		present, err := k.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec()})
		if err != nil {
			return err
		}
		ref = present.GetImage().GetId()
	}
	if ref == "" {
		if k.policy == "Never" {
			return status.Error(codes.NotFound, "ErrImageNeverPull")
		}
		pulled, err := k.PullImage(ctx, &cri.PullImageRequest{Image: spec(), SandboxConfig: config})
		if err != nil {
			return err
		}
		ref = pulled.ImageRef
		if _, err := k.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec()}); err != nil {
			return err
		}
	}
	security := &cri.LinuxContainerSecurityContext{}
	query, err := k.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		return err
	}
	switch found := query.GetImage(); { // getImageUser
	case k.user != nil:
		security.RunAsUser = &cri.Int64Value{Value: *k.user}
	case found.GetUid() != nil:
		security.RunAsUser = found.GetUid()
	case found.GetUsername() != "":
		security.RunAsUsername = found.GetUsername()
	default:
		security.RunAsUser = &cri.Int64Value{Value: 0}
	}
	_, err = k.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: sandbox, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata:    &cri.ContainerMetadata{Name: "app", Attempt: k.attempt},
			Image:       &cri.ImageSpec{Image: ref, UserSpecifiedImage: image},
			Annotations: map[string]string{"io.kubernetes.container.hash": "1"},
			Linux:       &cri.LinuxContainerConfig{SecurityContext: security},
		},
	})
	k.attempt++
	return err
}

func TestKubeletStartsGuestPullPod(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, policy, user string
		gate               bool
		wantUser           string // the annotation the shim resolves
		pulls              int    // over a start and a restart
	}{
		{"always, named user", "Always", "web", false, `{"user":"web"}`, 2},
		{"always, user and group", "Always", "web:staff", true, `{"user":"web:staff"}`, 2},
		{"not present, uid and gid", "IfNotPresent", "1000:2000", false, `{"user":"1000:2000"}`, 2},
		{"not present with the gate", "IfNotPresent", "1000", true, `{"user":"1000"}`, 1},
		{"no user", "Always", "", false, `{"user":"0"}`, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, front.Config{})
			img := n.registry.publish(appImage, c.user, "")
			id, config := n.sandbox("pod", "husk")
			k := &kubelet{node: n, policy: c.policy, gate: c.gate, handler: "husk"}
			n.Expect(k.start(t, id, config)).To(Succeed())
			n.Expect(k.start(t, id, config)).To(Succeed()) // it crashed

			n.Expect(n.crio.pulled).To(BeEmpty())
			n.Expect(n.registry.asked).To(HaveLen(c.pulls))
			rec := img.Record()
			pinned := "registry.local/app@" + rec.Manifest.String()
			created := n.lastCreated()
			n.Expect(created.Image.Image).To(Equal(rec.StorageID.String()))
			n.Expect(created.Image.UserSpecifiedImage).To(Equal(appImage))
			n.Expect(created.Annotations).To(And(
				HaveKeyWithValue(annotations.CRIOImageName, pinned),
				HaveKeyWithValue(annotations.User, MatchJSON(c.wantUser)),
				HaveKeyWithValue("io.kubernetes.container.hash", "1"),
			))
			n.Expect(created.Linux.SecurityContext.RunAsUsername).To(BeEmpty())

			got, err := n.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "container-2"})
			n.Expect(err).NotTo(HaveOccurred())
			n.Expect(got.Status.Image.Image).To(Equal(appImage))
			n.Expect(got.Status.ImageRef).To(Equal(pinned))
			n.Expect(got.Status.ImageId).To(Equal(rec.ImageID().String()))
		})
	}
}

func TestKubeletNever(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "web", "")
	id, config := n.sandbox("pod", "husk")
	k := &kubelet{node: n, policy: "Never", gate: true, handler: "husk"}
	n.Expect(k.start(t, id, config)).To(MatchError(ContainSubstring("ErrImageNeverPull")))
	n.pull(appImage)
	n.Expect(k.start(t, id, config)).To(Succeed())
	// Without the gate kubelet's check cannot say for whom, and CRI-O has none.
	k.gate = false
	n.Expect(k.start(t, id, config)).To(MatchError(ContainSubstring("ErrImageNeverPull")))
}

// TestKubeletFindsWhatCRIOHolds: an ordinary pod pulled the image in full, so that
// kubelet, asking without a handler, finds it present and does not pull.
func TestKubeletFindsWhatCRIOHolds(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	img := n.registry.publish(appImage, "web", "")
	n.addImage(appImage, img.ConfigDigest.ImageID().String(), nil, "web")
	id, config := n.sandbox("pod", "husk")
	for _, policy := range []string{"IfNotPresent", "Never"} {
		k := &kubelet{node: n, policy: policy, handler: "husk"}
		n.Expect(k.start(t, id, config)).To(Succeed())
		n.Expect(n.registry.asked).To(BeEmpty(), "no registry is asked")
		n.Expect(n.lastCreated().Image.Image).To(Equal(img.Record().StorageID.String()))
		n.Expect(n.lastCreated().Annotations).To(HaveKeyWithValue(annotations.User, MatchJSON(`{"user":"web"}`)))
	}
	// A pod may name an image ID; the record then gets the name that CRI-O has for it.
	heldID := img.ConfigDigest.ImageID().String()
	n.Expect(n.records.Remove(t.Context(), img.Record().StorageID)).To(Succeed())
	_, err := n.create(t, id, &cri.ImageSpec{Image: heldID, UserSpecifiedImage: heldID})
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(n.lastCreated().Image.UserSpecifiedImage).To(Equal(appImage))
	// What CRI-O does not hold either is not there.
	_, err = n.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: id, SandboxConfig: config,
		Config: &cri.ContainerConfig{Image: &cri.ImageSpec{Image: hexID('9'), UserSpecifiedImage: appImage}},
	})
	n.Expect(status.Code(err)).To(Equal(codes.NotFound))
	n.Expect(err).To(MatchError(ContainSubstring("imagePullPolicy Always")))
}

func TestKubeletAssumedHandler(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{AssumeHandler: "husk"})
	n.registry.publish(appImage, "web", "")
	n.pull(appImage)
	id, config := n.sandbox("pod", "husk")
	k := &kubelet{node: n, policy: "Never", handler: "husk"}
	n.Expect(k.start(t, id, config)).To(Succeed())
}

func TestKubeletOrdinaryPodIsUntouched(t *testing.T) {
	t.Parallel()
	for _, gate := range []bool{false, true} {
		n := newNode(t, front.Config{})
		n.registry.publish(appImage, "web", "")
		n.pull(appImage) // a record by the same name
		id, config := n.sandbox("pod", "runc")
		k := &kubelet{node: n, policy: "Never", gate: gate, handler: "runc"}
		n.Expect(k.start(t, id, config)).To(MatchError(ContainSubstring("ErrImageNeverPull")))

		uid := int64(33)
		n.addImage(appImage, hexID('a'), &uid, "")
		n.Expect(k.start(t, id, config)).To(Succeed())
		created := n.lastCreated()
		n.Expect(created.Image.Image).To(Equal(hexID('a')))
		n.Expect(created.Linux.SecurityContext.RunAsUser.GetValue()).To(Equal(uid))
		n.Expect(created.Annotations).To(HaveLen(1))

		k.policy = "Always"
		n.Expect(k.start(t, id, config)).NotTo(Succeed()) // the fake pulls nothing
		n.Expect(n.crio.pulled).To(HaveLen(1))
		n.Expect(n.registry.asked).To(HaveLen(1))
	}
}

// TestUserTrap has CRI-O hold another image under the pod's reference, so that
// kubelet learns the wrong user from it.
func TestUserTrap(t *testing.T) {
	t.Parallel()
	id := func(v int64) *int64 { return &v }
	for _, c := range []struct {
		name, own string // the pulled image's user
		crioUID   *int64
		crioName  string
		podUser   *int64
		want      string
	}{
		{"root by omission becomes the name", "web", nil, "", nil, `{"user":"web"}`},
		{"root by omission becomes the uid", "1000", nil, "", nil, `{"user":"1000"}`},
		{"other name", "web", nil, "www", nil, `{"user":"web"}`},
		{"a name is never the pod's, so root is right", "", nil, "www", nil, `{"user":"0"}`},
		{"other uid", "1000:5", id(33), "", nil, `{"user":"1000:5"}`},
		{"explicit user stands", "web", nil, "", id(7), `{"user":"7"}`},
		{"explicit root stands", "web", id(33), "", id(0), `{"user":"0"}`},
		{"never more than was asked for: root", "", id(33), "", nil, `{"user":"33"}`},
		{"never more than was asked for: a name", "web", id(33), "", nil, `{"user":"33"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, front.Config{})
			n.registry.publish(appImage, c.own, "")
			n.addImage(appImage, hexID('b'), c.crioUID, c.crioName)
			sandbox, config := n.sandbox("pod", "husk")
			k := &kubelet{node: n, policy: "Always", handler: "husk", user: c.podUser}
			n.Expect(k.start(t, sandbox, config)).To(Succeed())
			n.Expect(n.lastCreated().Annotations).To(HaveKeyWithValue(annotations.User, MatchJSON(c.want)))
		})
	}
}

// hexID is an image ID of one digit.
func hexID(c byte) string {
	id := make([]byte, 64)
	for i := range id {
		id[i] = c
	}
	return string(id)
}
