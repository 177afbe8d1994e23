package front_test

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/internal/testkit/shims"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/annotations"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// layered is a node with a pod whose shim pulls layers.
type layered struct {
	*node
	shim   *shims.Shim
	dir    string
	config *cri.PodSandboxConfig
	told   *observer
	out    *lines
}

// layerHandlers are allHandlers with a shim that pulls.
func layerHandlers() fakeHandlers {
	handlers := allHandlers()
	h := handlers["husk"]
	h.PullsLayers = true
	handlers["husk"] = h
	return handlers
}

// newLayered makes the node; the shim is not started yet.
func newLayered(t *testing.T, config front.Config, change ...func(*front.Collaborators)) *layered {
	t.Helper()
	dir, err := os.MkdirTemp("", "fl")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &layered{dir: dir, told: new(observer), out: new(lines)}
	if config.Handlers == nil {
		config.Handlers = layerHandlers()
	}
	l.node = newNode(t, config, append(change, func(c *front.Collaborators) {
		c.Layers, c.Observer = sandboxes.Client{StateDir: dir}, l.told
		c.Log = slog.New(slog.NewJSONHandler(l.out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})...)
	var id string
	id, l.config = l.sandbox("pod", "husk")
	l.shim = &shims.Shim{ID: id}
	return l
}

// kubelet pulls as kubelet does for the pod, with its secret.
func (l *layered) kubelet(ctx context.Context, handler string) (string, error) {
	answer, err := l.PullImage(ctx, &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: appImage, Annotations: l.config.Annotations, RuntimeHandler: handler}, SandboxConfig: l.config,
		Auth: &cri.AuthConfig{Username: "alice", Password: "s3cr3t"},
	})
	return answer.GetImageRef(), err
}

// present is kubelet's presence check with the gate RuntimeClassInImageCriApi.
func (l *layered) present(t *testing.T) bool {
	return l.status(t, &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk", Annotations: l.config.Annotations}) != nil
}

// succeeds answers with the image, in full.
func succeeds(img manifestonly.Image) func(context.Context, *shimv1.PullImageRequest, shimv1.Images_PullImageServer) error {
	return func(_ context.Context, req *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
		for _, p := range []*shimv1.Progress{{Layers: 2, Bytes: 1 << 20}, {Layers: 2, LayersDone: 2, Bytes: 1 << 20, BytesDone: 1 << 20}} {
			if err := stream.Send(&shimv1.PullImageResponse{Progress: p}); err != nil {
				return err
			}
		}
		return stream.Send(&shimv1.PullImageResponse{Result: &shimv1.Image{
			Reference: req.GetReference(), ManifestDigest: img.Manifest.Digest.String(), ImageId: img.ConfigDigest.ImageID().String(), Layers: 2,
		}})
	}
}

func fails(kind errdefs.Kind) func(context.Context, *shimv1.PullImageRequest, shimv1.Images_PullImageServer) error {
	return func(_ context.Context, req *shimv1.PullImageRequest, _ shimv1.Images_PullImageServer) error {
		return shims.Error(errdefs.Newf(kind, "pull "+req.GetReference(), "the reason"))
	}
}

func TestLayersArePulledInsideThePull(t *testing.T) {
	t.Parallel()
	for _, handler := range []string{"", "husk"} {
		l := newLayered(t, front.Config{})
		img := l.registry.publish(appImage, "web", "")
		before := true
		l.shim.Pull = func(ctx context.Context, req *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
			before = l.present(t)
			return succeeds(img)(ctx, req, stream)
		}
		l.shim.Start(t, l.dir)
		id, err := l.kubelet(t.Context(), handler)
		l.Expect(err).NotTo(HaveOccurred())
		l.Expect(id).To(Equal(img.ConfigDigest.ImageID().String()))
		l.Expect(before).To(BeFalse(), "an image is there when its layers are")
		l.Expect(l.present(t)).To(BeTrue())
		l.Expect(l.shim.Pulls()).To(HaveLen(1))
		asked := l.shim.Pulls()[0]
		l.Expect(asked.GetReference()).To(Equal("registry.local/app@" + img.Manifest.Digest.String()))
		l.Expect([]string{asked.GetCredentials().GetUsername(), asked.GetCredentials().GetPassword()}).To(Equal([]string{"alice", "s3cr3t"}))
		l.Expect(l.registry.asked).To(HaveLen(1))
		l.Expect(l.told.pulled).To(Equal([]string{"husk ok", "layers husk ok 1048576"}))
		l.Expect(l.told.results[0].Stats.Requests).To(Equal(2))
		l.Expect(l.told.layers + l.told.under).To(BeZero())
		said := l.out.of(t, "PullImage")
		l.Expect(said).To(HaveLen(1))
		l.Expect(said[0]).To(And(HaveKeyWithValue("msg", "pulled image"), HaveKeyWithValue("sandbox", "sandbox-pod"),
			HaveKeyWithValue("layer_bytes", BeNumerically("==", 1<<20)), HaveKey("layers_took"), HaveKeyWithValue("image_id", id)))
		l.Expect(l.out.text.String()).NotTo(ContainSubstring("s3cr3t"))
		// kubelet goes on from there.
		_, err = l.create(t, "sandbox-pod", &cri.ImageSpec{Image: id, UserSpecifiedImage: appImage})
		l.Expect(err).NotTo(HaveOccurred())
	}
}

// TestLayersOfAnIndex: the pod is asked for what the tag means, which is the index, and
// again by the same name when a container is created, so that it need not ask anybody.
func TestLayersOfAnIndex(t *testing.T) {
	t.Parallel()
	index, err := imageref.ParseManifestDigest("sha256:" + hexID('9'))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	l := newLayered(t, front.Config{}, func(c *front.Collaborators) { c.Puller = indexed{c.Puller, index} })
	l.shim.Pull = succeeds(l.registry.publish(appImage, "web", ""))
	l.shim.Start(t, l.dir)
	id, err := l.kubelet(t.Context(), "")
	l.Expect(err).NotTo(HaveOccurred())
	asked := l.shim.Pulls()[0].GetReference()
	l.Expect(asked).To(Equal("registry.local/app@" + index.String()))
	_, err = l.create(t, "sandbox-pod", &cri.ImageSpec{Image: id, UserSpecifiedImage: appImage})
	l.Expect(err).NotTo(HaveOccurred())
	l.Expect(l.lastCreated().Annotations).To(HaveKeyWithValue(annotations.ImageRef, asked))
}

// indexed has its images in an index.
type indexed struct {
	front.Puller
	index imageref.ManifestDigest
}

func (i indexed) Fetch(ctx context.Context, req manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error) {
	img, stats, err := i.Puller.Fetch(ctx, req)
	img.Pulled.Digest = i.index
	return img, stats, err
}

// TestFailedLayersLeaveNoRecord: kubelet is told why, in words it knows, and pulls again
// with its credentials, because the image is not there.
func TestFailedLayersLeaveNoRecord(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{})
	img := l.registry.publish(appImage, "web", "")
	l.shim.Start(t, l.dir)
	for kind, says := range map[errdefs.Kind]string{
		errdefs.RegistryUnavailable: "RegistryUnavailable: ", errdefs.PolicyRefused: "SignatureValidationFailed: ",
		errdefs.KeyUnavailable: "", errdefs.TooLarge: "", errdefs.Unauthorized: "", errdefs.NotFound: "", errdefs.Internal: "",
		errdefs.Unsupported: "", errdefs.DigestMismatch: "", errdefs.Unavailable: "", errdefs.NoPlatform: "",
	} {
		l.shim.Pull = fails(kind)
		_, err := l.kubelet(t.Context(), "husk")
		l.Expect(status.Code(err)).To(Equal(kind.Code()), "%s: %v", kind, err)
		text := status.Convert(err).Message()
		l.Expect(text).To(And(HavePrefix(says+"pull the layers of registry.local/app@"), ContainSubstring("the reason")))
		l.Expect(l.present(t)).To(BeFalse(), kind.String())
		l.Expect(l.records.List(t.Context())).To(BeEmpty(), kind.String())
	}
	l.shim.Pull = succeeds(img)
	_, err := l.kubelet(t.Context(), "husk")
	l.Expect(err).NotTo(HaveOccurred())
	l.Expect(l.present(t)).To(BeTrue())
	last := l.shim.Pulls()[len(l.shim.Pulls())-1]
	l.Expect(last.GetCredentials().GetPassword()).To(Equal("s3cr3t"))
}

// TestFailedLayersLeaveWhatWasThere: a record of an earlier pull, and its tag, stay as
// they were, for the containers that are made of it.
func TestFailedLayersLeaveWhatWasThere(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{})
	old := l.registry.publish(appImage, "web", "")
	l.shim.Pull = succeeds(old)
	l.shim.Start(t, l.dir)
	_, err := l.kubelet(t.Context(), "")
	l.Expect(err).NotTo(HaveOccurred())
	was, err := l.records.List(t.Context())
	l.Expect(err).NotTo(HaveOccurred())
	l.Expect(was).To(HaveLen(1))

	l.shim.Pull = fails(errdefs.TooLarge)
	for _, salt := range []string{"", "another manifest"} { // the same again, and a tag that has moved
		l.registry.publish(appImage, "web", salt)
		_, err = l.kubelet(t.Context(), "")
		l.Expect(status.Code(err)).To(Equal(codes.ResourceExhausted))
		l.Expect(l.records.List(t.Context())).To(Equal(was))
	}
}

// TestOtherLayers: a pod that pulled something else is not believed.
func TestOtherLayers(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{})
	l.registry.publish(appImage, "web", "")
	other := l.registry.publish("registry.local/other:1", "web", "other")
	config := l.registry.publish("registry.local/config:1", "root", "")
	l.shim.Start(t, l.dir)
	right := l.registry.images[appImage]
	right.ConfigDigest = config.ConfigDigest
	for _, lie := range []manifestonly.Image{other, right} {
		l.shim.Pull = succeeds(lie)
		_, err := l.kubelet(t.Context(), "")
		l.Expect(status.Code(err)).To(Equal(codes.DataLoss), "%v", err)
		l.Expect(l.records.List(t.Context())).To(BeEmpty())
	}
	l.Expect(l.told.pulled).To(ContainElement(HavePrefix("layers husk digest-mismatch")))
}

// TestWhoPullsNoLayers: no pod, a pod of Kata's, and a shim that is older than husk.
func TestWhoPullsNoLayers(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{})
	l.registry.publish(appImage, "web", "")
	l.shim.Start(t, l.dir)
	_, kata := l.sandbox("kata", "kata")
	_, old := l.sandbox("old", "husk")
	shims.StartOld(t, l.dir, "sandbox-old")
	for name, req := range map[string]*cri.PullImageRequest{
		"crictl pull":     {Image: &cri.ImageSpec{RuntimeHandler: "husk"}},
		"kata":            {Image: &cri.ImageSpec{}, SandboxConfig: kata},
		"a handler named": {Image: &cri.ImageSpec{RuntimeHandler: "kata"}, SandboxConfig: l.config},
		"kata's pod":      {Image: &cri.ImageSpec{RuntimeHandler: "husk"}, SandboxConfig: kata},
		"an old shim":     {Image: &cri.ImageSpec{}, SandboxConfig: old},
		"old, by handler": {Image: &cri.ImageSpec{RuntimeHandler: "husk"}, SandboxConfig: old},
	} {
		req.Image.Image = appImage
		l.Expect(l.records.List(t.Context())).To(BeEmpty())
		_, err := l.PullImage(t.Context(), req)
		l.Expect(err).NotTo(HaveOccurred(), name)
		records, err := l.records.List(t.Context())
		l.Expect(err).NotTo(HaveOccurred())
		l.Expect(records).To(HaveLen(1), name)
		l.Expect(l.records.Remove(t.Context(), records[0].StorageID)).To(Succeed())
	}
	l.Expect(l.shim.Pulls()).To(BeEmpty())
	l.Expect(l.out.text.String()).To(ContainSubstring("older than this husk"))
	l.Expect(l.told.pulled).To(And(ContainElement("layers husk unsupported 0"), Not(ContainElement(HavePrefix("layers husk ok")))))
	l.Expect(l.crio.pulled).To(BeEmpty())
}

// TestAPodThatIsGone cannot pull: kubelet asks again, for the next one.
func TestAPodThatIsGone(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{})
	l.registry.publish(appImage, "web", "")
	_, err := l.kubelet(t.Context(), "")
	l.Expect(status.Code(err)).To(Equal(codes.Unavailable), "%v", err)
	l.Expect(l.records.List(t.Context())).To(BeEmpty())
}

// hanging is a pull of layers that goes on until its client has left.
type hanging struct{ begun, ended chan struct{} }

func (l *layered) hangs(t *testing.T) hanging {
	h := hanging{make(chan struct{}, 8), make(chan struct{}, 8)}
	l.shim.Pull = func(ctx context.Context, _ *shimv1.PullImageRequest, _ shimv1.Images_PullImageServer) error {
		h.begun <- struct{}{}
		<-ctx.Done()
		h.ended <- struct{}{}
		return ctx.Err()
	}
	l.shim.Start(t, l.dir)
	return h
}

// TestLayersEndWithTheClient: kubelet restarts, and the pod does not go on for nobody.
func TestLayersEndWithTheClient(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{})
	l.registry.publish(appImage, "web", "")
	h := l.hangs(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { _, err := l.kubelet(ctx, ""); result <- err }()
	l.Eventually(h.begun, "10s").Should(Receive())
	cancel()
	l.Expect(status.Code(<-result)).To(Equal(codes.Canceled))
	l.Eventually(h.ended, "10s").Should(Receive())
	l.Eventually(func() []string { l.told.mu.Lock(); defer l.told.mu.Unlock(); return l.told.pulled }, "10s").
		Should(ContainElement("layers husk canceled 0"))
	l.Expect(l.records.List(t.Context())).To(BeEmpty())
}

func TestLayerPullTimeout(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{LayerPullTimeout: 300 * time.Millisecond})
	l.registry.publish(appImage, "web", "")
	h := l.hangs(t)
	_, err := l.kubelet(t.Context(), "")
	l.Expect(status.Code(err)).To(Equal(codes.DeadlineExceeded))
	l.Expect(err).To(MatchError(ContainSubstring("layer_pull_timeout (300ms)")))
	l.Eventually(h.ended, "10s").Should(Receive())
	l.Expect(l.records.List(t.Context())).To(BeEmpty())
}

// TestLayersHoldNoSlot: max_pulls is for metadata, and a slow model of one pod keeps no
// other pod waiting. A reload leaves the pull alone.
func TestLayersHoldNoSlot(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{MaxPulls: 1, PullTimeout: 5 * time.Second})
	img := l.registry.publish(appImage, "web", "")
	begun, leave := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(leave) })
	defer release()
	l.shim.Pull = func(ctx context.Context, req *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
		close(begun)
		<-leave
		return succeeds(img)(ctx, req, stream)
	}
	l.shim.Start(t, l.dir)
	result := make(chan error, 1)
	go func() { _, err := l.kubelet(t.Context(), ""); result <- err }()
	l.Eventually(begun, "10s").Should(BeClosed())
	second, config := l.sandbox("second", "husk")
	(&shims.Shim{ID: second, Pull: succeeds(img)}).Start(t, l.dir)
	_, err := l.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage}, SandboxConfig: config})
	l.Expect(err).NotTo(HaveOccurred())
	l.server.Reconfigure(front.Config{Handlers: fakeHandlers{"runc": {Name: "runc"}}, LayerPullTimeout: time.Nanosecond})
	l.Consistently(result, "50ms").ShouldNot(Receive())
	release()
	l.Expect(<-result).To(Succeed())
}

// TestPodNetworkAndLayers: the metadata comes from the pod's network too.
func TestPodNetworkAndLayers(t *testing.T) {
	t.Parallel()
	p := new(placed)
	handlers := layerHandlers()
	h := handlers["husk"]
	h.PullInSandbox = true
	handlers["husk"] = h
	l := newLayered(t, front.Config{Handlers: handlers}, func(c *front.Collaborators) {
		p.registry, c.Placed = c.Puller.(*fakeRegistry), p
	})
	img := l.registry.publish(appImage, "web", "")
	l.shim.Pull = succeeds(img)
	l.shim.Start(t, l.dir)
	l.crio.asked = nil
	_, err := l.kubelet(t.Context(), "husk")
	l.Expect(err).NotTo(HaveOccurred())
	l.Expect(p.places).To(HaveLen(1))
	l.Expect(strings.Join(l.crio.asked, " ")).To(Equal("ListPodSandbox PodSandboxStatus sandbox-pod"), "asked once")
	l.Expect(l.present(t)).To(BeTrue())
}

// TestCommitThatFails is the pull's failure, and a retry finds the layers there.
func TestCommitThatFails(t *testing.T) {
	t.Parallel()
	l := newLayered(t, front.Config{}, func(c *front.Collaborators) { c.Puller = brokenStore{c.Puller} })
	l.shim.Pull = succeeds(l.registry.publish(appImage, "web", ""))
	l.shim.Start(t, l.dir)
	_, err := l.kubelet(t.Context(), "")
	l.Expect(status.Code(err)).To(Equal(codes.Unavailable))
	l.Expect(err).To(MatchError(ContainSubstring("locked")))
}

type brokenStore struct{ front.Puller }

func (b brokenStore) Commit(_ context.Context, img manifestonly.Image) (rec imageref.Record, err error) {
	return rec, errdefs.Newf(errdefs.Unavailable, "store "+img.Pulled.Reference.String(), "locked")
}
