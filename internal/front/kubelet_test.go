package front_test

import (
	"fmt"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
)

const appImage = "registry.local/app:1"

// TestKubeletStartsGuestPullPod: every way to a container that kubelet has, and a
// restart; at the end the container's real user and every field of what CRI-O was sent.
func TestKubeletStartsGuestPullPod(t *testing.T) {
	t.Parallel()
	wrong, right := &cri.AuthConfig{Username: "u", Password: "old"}, &cri.AuthConfig{Username: "u", Password: "new"}
	for _, policy := range []string{"Always", "IfNotPresent", "Never"} {
		for _, gate := range []bool{false, true} {
			for _, keyring := range [][]*cri.AuthConfig{nil, {right}, {wrong, right}} {
				for user, want := range map[string]string{"web": `{"user":"web"}`, "web:staff": `{"user":"web:staff"}`, "1000:2000": `{"user":"1000:2000"}`, "1000": `{"user":"1000"}`, "": `{"user":"0"}`} {
					t.Run(fmt.Sprintf("%s/gate=%t/%d credentials/user %q", policy, gate, len(keyring), user), func(t *testing.T) {
						t.Parallel()
						n := newNode(t, front.Config{})
						rec := n.registry.publish(appImage, user, "").Record()
						if keyring != nil {
							n.registry.wants = map[string]string{appImage: right.Password}
						}
						k := &kubelet{node: n, policy: policy, gate: gate, handler: "husk", keyring: keyring}
						sandbox, config := n.sandbox("pod", "husk")
						if policy == "Never" {
							n.Expect(k.start(t, sandbox, config)).To(MatchError(errNeverPull))
							n.registry.wants = nil
							n.pull(appImage)
							n.registry.asked = nil
						}
						if policy == "Never" && !gate {
							// kubelet's question cannot say for whom, and CRI-O has none.
							n.Expect(k.start(t, sandbox, config)).To(MatchError(errNeverPull))
							return
						}
						n.Expect(k.start(t, sandbox, config)).To(Succeed())
						n.Expect(k.start(t, sandbox, config)).To(Succeed()) // it crashed

						pulls := map[string]int{"Always": 2, "IfNotPresent": 2}[policy]
						if policy == "IfNotPresent" && gate {
							pulls = 1
						}
						n.Expect(n.registry.asked).To(HaveLen(pulls * max(1, len(keyring))))
						n.Expect(n.crio.pulled).To(BeEmpty())
						k.checkCreated(rec, want)
					})
				}
			}
		}
	}
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
		n.Expect(k.start(t, id, config)).To(MatchError(errNeverPull))

		uid := int64(33)
		n.addImage(appImage, hexID('a'), &uid, "")
		n.Expect(k.start(t, id, config)).To(Succeed())
		created := n.lastCreated()
		n.Expect(created.Image.Image).To(Equal(hexID('a')))
		n.Expect(created.Linux.SecurityContext.RunAsUser.GetValue()).To(Equal(uid))

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
