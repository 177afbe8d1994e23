package front_test

import (
	"fmt"
	"slices"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
)

// collect is kubelet's image GC (pkg/kubelet/images/image_gc_manager.go), with no disk
// left: it removes every image that no container uses, and returns their IDs and what
// it was refused.
func (k *kubelet) collect(t *testing.T) (removed []string, refusals []error) {
	t.Helper()
	// getImageTuple: with the gate an image is known by its handler too.
	key := func(id, handler string) string {
		if k.gate && handler != "" {
			return id + "," + handler
		}
		return id
	}
	list, err := k.ListImages(t.Context(), new(cri.ListImagesRequest))
	k.Expect(err).NotTo(HaveOccurred())
	_, err = k.ListPodSandbox(t.Context(), new(cri.ListPodSandboxRequest))
	k.Expect(err).NotTo(HaveOccurred())
	containers, err := k.ListContainers(t.Context(), new(cri.ListContainersRequest))
	k.Expect(err).NotTo(HaveOccurred())
	used := map[string]bool{}
	for _, c := range containers.Containers { // toKubeContainer
		id := c.ImageRef
		if c.ImageId != "" {
			id = c.ImageId
		}
		used[key(id, c.GetImage().GetRuntimeHandler())] = true
	}
	seen := map[string]bool{}
	for _, image := range list.Images {
		if name := key(image.Id, image.GetSpec().GetRuntimeHandler()); used[name] || seen[name] {
			continue
		} else {
			seen[name] = true
		}
		// Never with a handler, even with the gate.
		if _, err := k.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image.Id}}); err != nil {
			refusals = append(refusals, err)
			continue
		}
		removed = append(removed, image.Id)
	}
	if k.ensure != nil {
		left, err := k.ListImages(t.Context(), new(cri.ListImagesRequest))
		k.Expect(err).NotTo(HaveOccurred())
		k.ensure.prune(left.Images)
	}
	return removed, refusals
}

func TestKubeletCollectsImages(t *testing.T) {
	t.Parallel()
	for _, gate := range []bool{false, true} {
		for _, handler := range []string{"husk", "kata"} {
			t.Run(fmt.Sprint(handler, "/gate=", gate), func(t *testing.T) {
				t.Parallel()
				n := newNode(t, front.Config{})
				k := &kubelet{node: n, policy: "Always", gate: gate, handler: handler, ensure: newPullRecords()}
				used := n.registry.publish(appImage, "1000", "used").Record()
				unused := n.registry.publish("registry.local/unused:1", "1000:1", "unused").Record()
				n.pull("registry.local/unused:1")
				n.addImage("registry.local/plain:1", hexID('a'), nil, "")
				n.addImage("registry.local/idle:1", hexID('b'), nil, "")
				sandbox, config := n.sandbox("pod", handler)
				n.Expect(k.start(t, sandbox, config)).To(Succeed())
				runc, _ := n.sandbox("plain", "runc")
				_, err := n.create(t, runc, &cri.ImageSpec{Image: "registry.local/plain:1"})
				n.Expect(err).NotTo(HaveOccurred())
				n.records.SetInUse(used.StorageID, true)

				removed, refusals := k.collect(t)
				n.Expect(refusals).To(BeEmpty(), "the used image is not even tried")
				n.Expect(removed).To(ConsistOf(unused.ImageID().String(), hexID('b')))
				left, err := n.records.List(t.Context())
				n.Expect(err).NotTo(HaveOccurred())
				n.Expect(left).To(HaveLen(1))
				n.Expect(left[0].StorageID).To(Equal(used.StorageID))
				n.Expect(k.ensure.records).To(HaveKey(used.ImageID().String()), "kubelet still knows who pulled it")

				// The restart of its container finds everything in place.
				k.policy = "IfNotPresent"
				n.Expect(k.start(t, sandbox, config)).To(Succeed())
				// Once its containers are gone it goes too.
				n.crio.containers = nil
				n.records.SetInUse(used.StorageID, false)
				removed, refusals = k.collect(t)
				n.Expect(refusals).To(BeEmpty())
				n.Expect(removed).To(ConsistOf(used.ImageID().String(), hexID('a')))
				n.Expect(n.lists(t, nil)).To(BeEmpty())
				n.Expect(k.ensure.records).To(BeEmpty())
			})
		}
	}
}

// TestKubeletCollectsTwins: one image ID, as a record and in full, and one of the two
// is used. Without the gate kubelet takes both to be used; with it the unused one is
// tried by an ID that means both, and refused: the used is never removed.
func TestKubeletCollectsTwins(t *testing.T) {
	t.Parallel()
	for _, gate := range []bool{false, true} {
		for _, handler := range []string{"husk", "runc"} {
			n := newNode(t, front.Config{})
			k := &kubelet{node: n, policy: "Always", gate: gate, handler: handler}
			rec := n.registry.publish(appImage, "1000", "").Record()
			id := n.pull(appImage)
			n.addImage(appImage, id, nil, "")
			sandbox, _ := n.sandbox("pod", handler)
			_, err := n.create(t, sandbox, &cri.ImageSpec{Image: id, UserSpecifiedImage: appImage})
			n.Expect(err).NotTo(HaveOccurred())
			removed, refusals := k.collect(t)
			n.Expect(removed).To(BeEmpty())
			n.Expect(refusals).To(HaveLen(map[bool]int{false: 0, true: 1}[gate]))
			n.Expect(n.records.Get(t.Context(), rec.StorageID)).NotTo(BeZero())
			n.Expect(n.crio.images).To(HaveLen(1))
		}
	}
}

// TestKubeletEnsuresSecretPulledImages is KEP-2535: an image that one tenant pulled
// with a secret is no other's for being there.
func TestKubeletEnsuresSecretPulledImages(t *testing.T) {
	t.Parallel()
	secret, stolen := &cri.AuthConfig{Password: "right"}, &cri.AuthConfig{Password: "guessed"}
	for _, gate := range []bool{false, true} {
		for _, held := range []bool{false, true} { // CRI-O holds it in full as well
			n := newNode(t, front.Config{})
			memory := newPullRecords()
			tenant := func(keyring ...*cri.AuthConfig) *kubelet {
				return &kubelet{node: n, policy: "IfNotPresent", gate: gate, handler: "husk", keyring: keyring, ensure: memory}
			}
			rec := n.registry.publish(appImage, "web", "").Record()
			n.registry.wants = map[string]string{appImage: secret.Password}
			podA, configA := n.sandbox("a", "husk")
			podB, configB := n.sandbox("b", "husk")
			if held { // an ordinary pod of tenant A was first
				n.addImage(appImage, rec.ImageID().String(), nil, "web")
				memory.intents[appImage]++
				memory.pulled(appImage, rec.ImageID().String(), secret)
			}
			a := tenant(secret)
			n.Expect(a.start(t, podA, configA)).To(Succeed())
			n.Expect(memory.records).To(HaveKey(rec.ImageID().String()), "by the ref that PullImage answers")
			a.checkCreated(rec, `{"user":"web"}`)
			pulls, made := len(n.registry.asked), len(n.crio.created)

			// Tenant B brings nothing, or what is wrong: it is made to pull, and refused.
			for _, keyring := range [][]*cri.AuthConfig{nil, {stolen}} {
				b := tenant(keyring...)
				n.Expect(status.Code(b.start(t, podB, configB))).To(Equal(codes.Unauthenticated))
				pulls++
				n.Expect(n.registry.asked).To(HaveLen(pulls))
				b.policy = "Never"
				n.Expect(b.start(t, podB, configB)).To(MatchError(errNeverPull))
			}
			n.Expect(n.crio.created).To(HaveLen(made))

			// Tenant A starts again; where kubelet can see the image it need not pull.
			n.Expect(a.start(t, podA, configA)).To(Succeed())
			if !gate && !held {
				pulls++
			}
			n.Expect(n.registry.asked).To(HaveLen(pulls))
			// With A's secret of its own, B may use it.
			n.Expect(tenant(secret).start(t, podB, configB)).To(Succeed())
		}
	}
}

// TestKubeletRestartsDuringAPull: kubelet finds the image by its name in the list, and
// then lets nobody have it without a pull.
func TestKubeletRestartsDuringAPull(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "web", "")
	id := n.pull(appImage)
	memory := newPullRecords()
	memory.intents[appImage]++
	memory.restarted(n.lists(t, nil))
	n.Expect(memory.records).To(HaveKey(id))
	n.Expect(memory.intents[appImage]).To(BeZero())
	sandbox, config := n.sandbox("pod", "husk")
	n.registry.wants = map[string]string{appImage: "right"}
	k := &kubelet{node: n, policy: "IfNotPresent", gate: true, handler: "husk", ensure: memory}
	n.Expect(status.Code(k.start(t, sandbox, config))).To(Equal(codes.Unauthenticated))
	n.Expect(slices.ContainsFunc(n.lists(t, nil), func(i *cri.Image) bool { return i.Id == id })).To(BeTrue())
}
