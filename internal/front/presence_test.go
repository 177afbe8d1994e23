package front_test

import (
	"context"
	"maps"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/testkit/shims"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// pulledByAnother is a node whose first pod has pulled appImage, and a second pod that has
// not; its shim is not started.
func pulledByAnother(t *testing.T, config front.Config) (l *layered, second *shims.Shim, ask *cri.ImageSpec) {
	t.Helper()
	l = newLayered(t, config)
	l.shim.Pull = succeeds(l.registry.publish(appImage, "web", ""))
	l.shim.Start(t, l.dir)
	_, err := l.kubelet(t.Context(), "husk")
	l.Expect(err).NotTo(HaveOccurred())
	l.Expect(l.present(t)).To(BeTrue())

	id, pod := l.sandbox("second", "husk")
	seen := maps.Clone(pod.Annotations)
	seen["kubernetes.io/config.seen"] = "2026-11-23T12:00:00.000000001Z"
	l.crio.mu.Lock()
	l.crio.sandboxes[len(l.crio.sandboxes)-1].Annotations = seen
	l.crio.mu.Unlock()
	return l, &shims.Shim{ID: id}, &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk", Annotations: maps.Clone(seen)}
}

// TestPresentInThePodThatAsks: a record that another pod brought is not present to a pod
// that does not hold it, or kubelet would never pull it with that pod's secret.
func TestPresentInThePodThatAsks(t *testing.T) {
	t.Parallel()
	l, second, ask := pulledByAnother(t, front.Config{})
	second.Start(t, l.dir)
	l.Expect(l.status(t, ask)).To(BeNil())
	l.Expect(l.present(t)).To(BeTrue(), "to the first it is")

	// The same image by the name of another repository is not what was asked for.
	held := l.shim
	second.List = func(ctx context.Context) (*shimv1.ListImagesResponse, error) {
		answer, err := held.ListImages(ctx, nil)
		if err == nil {
			answer.Images[0] = &shimv1.Image{
				Reference: "registry.local/other@" + answer.Images[0].GetManifestDigest(), ManifestDigest: answer.Images[0].GetManifestDigest(),
				ImageId: answer.Images[0].GetImageId(), Layers: 2,
			}
		}
		return answer, err
	}
	l.Expect(l.status(t, ask)).To(BeNil())
	id := l.status(t, &cri.ImageSpec{Image: appImage}).GetId()
	l.Expect(id).NotTo(BeEmpty())
	ask.Image = id
	l.Expect(l.status(t, ask).GetId()).To(Equal(id), "an ID has no repository")
	ask.Image = appImage
	second.List = func(ctx context.Context) (*shimv1.ListImagesResponse, error) { return held.ListImages(ctx, nil) }
	l.Expect(l.status(t, ask).GetId()).To(Equal(id))
}

// TestPresentOnTheNode: who cannot be asked, or need not be, sees the node's records.
func TestPresentOnTheNode(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*layered, *shims.Shim, *cri.ImageSpec){
		"an old shim": func(l *layered, s *shims.Shim, _ *cri.ImageSpec) { shims.StartOld(t, l.dir, s.ID) },
		"no such pod": func(_ *layered, _ *shims.Shim, ask *cri.ImageSpec) {
			ask.Annotations["kubernetes.io/config.seen"] = "never"
		},
		"no pod named": func(_ *layered, _ *shims.Shim, ask *cri.ImageSpec) { ask.Annotations = nil },
		"a pod that has ended": func(l *layered, _ *shims.Shim, _ *cri.ImageSpec) {
			l.crio.mu.Lock()
			defer l.crio.mu.Unlock()
			l.crio.sandboxes[len(l.crio.sandboxes)-1].State = cri.PodSandboxState_SANDBOX_NOTREADY
		},
	} {
		l, second, ask := pulledByAnother(t, front.Config{})
		change(l, second, ask)
		l.Expect(l.status(t, ask)).NotTo(BeNil(), name)
	}
	handlers := layerHandlers()
	h := handlers["husk"]
	h.PresentOnNode = true
	handlers["husk"] = h
	l, _, ask := pulledByAnother(t, front.Config{Handlers: handlers})
	l.Expect(l.status(t, ask)).NotTo(BeNil(), "presence = node")
}

// TestPresenceOfTheNewestSandbox: a pod whose sandbox was made anew has two.
func TestPresenceOfTheNewestSandbox(t *testing.T) {
	t.Parallel()
	l, second, ask := pulledByAnother(t, front.Config{})
	second.Start(t, l.dir)
	l.crio.mu.Lock()
	for i, s := range l.crio.sandboxes {
		s.Annotations = ask.Annotations
		s.CreatedAt = int64(len(l.crio.sandboxes) - i) // the first is the newest
	}
	l.crio.mu.Unlock()
	l.Expect(l.status(t, ask)).NotTo(BeNil())
}

// TestPresenceOfADeadShim: that nobody knows is no answer.
func TestPresenceOfADeadShim(t *testing.T) {
	t.Parallel()
	l, second, ask := pulledByAnother(t, front.Config{})
	second.List = func(context.Context) (*shimv1.ListImagesResponse, error) {
		return nil, shims.Error(errdefs.Newf(errdefs.Unavailable, "list images", "the pod's shim is gone"))
	}
	second.Start(t, l.dir)
	_, err := l.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: ask})
	l.Expect(status.Code(err)).To(Equal(codes.Unavailable))
}
