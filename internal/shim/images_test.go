package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// hanging is a puller that hangs until its context ends or it is told to go on.
type hanging struct {
	began chan layers.Request
	goOn  chan struct{}
	ended chan error
}

func newHanging() hanging {
	return hanging{make(chan layers.Request, 16), make(chan struct{}), make(chan error, 16)}
}

func (h hanging) pull(t *testing.T) pullFunc {
	return func(ctx context.Context, req layers.Request) (layers.Image, error) {
		h.began <- req
		select {
		case <-h.goOn:
			return somePulled(t), nil
		case <-ctx.Done():
			h.ended <- context.Cause(ctx)
			return layers.Image{}, errdefs.New(errdefs.KindOf(context.Cause(ctx)), "pull", context.Cause(ctx))
		}
	}
}

func TestAClientThatLeavesEndsItsPull(t *testing.T) {
	t.Parallel()
	h := newHanging()
	r := newImagesRig(t, h.pull(t))
	half := filepath.Join(r.store.images(), "tmp", "layer") // of the child that is killed
	r.Expect(os.MkdirAll(half, 0o700)).To(Succeed())
	client, leave := r.connect()
	done := make(chan error, 1)
	go func() {
		_, err := r.pullImage(client, &shimv1.PullImageRequest{Reference: pinnedImage})
		done <- err
	}()
	r.Eventually(h.began).Should(Receive())
	r.Expect(r.status().Pulls).To(HaveExactElements(And(HaveField("Reference", pinnedImage), HaveField("StartedAt", BeNumerically(">", 0)))))
	leave()
	r.Eventually(h.ended).Should(Receive(MatchError(context.Canceled)))
	r.Eventually(done).Should(Receive(HaveOccurred()))
	r.Eventually(func() []*shimv1.Pull { return r.status().Pulls }).Should(BeEmpty())
	r.Expect(half).NotTo(BeADirectory())
}

func TestSomePullsAtOnceOthersWait(t *testing.T) {
	t.Parallel()
	h := newHanging()
	r := newImagesRig(t, h.pull(t))
	leaves := make([]func(), pod.MaxPulls+3)
	dones := make([]chan error, len(leaves))
	start := func(n int) {
		var client shimv1.ImagesClient
		client, leaves[n] = r.connect()
		dones[n] = make(chan error, 1)
		go func() {
			_, err := r.pullImage(client, &shimv1.PullImageRequest{Reference: pinnedImage})
			dones[n] <- err
		}()
		r.Eventually(func() int { return len(r.status().Pulls) }).Should(Equal(n + 1))
	}
	for n := range leaves {
		start(n)
	}
	slots := map[string]bool{}
	for range pod.MaxPulls {
		slots[(<-h.began).Name] = true
	}
	r.Expect(slots).To(HaveLen(pod.MaxPulls), "each has a cgroup of its own")
	r.Consistently(h.began, "50ms").ShouldNot(Receive())

	// One that waits may leave; the next in turn gets the first free slot.
	leaves[pod.MaxPulls]()
	r.Eventually(dones[pod.MaxPulls]).Should(Receive(HaveOccurred()))
	r.Eventually(func() int { return len(r.status().Pulls) }).Should(Equal(len(leaves) - 1))
	leaves[0]()
	r.Eventually(h.began).Should(Receive(HaveField("Name", BeKeyOf(slots))))
	close(h.goOn)
	for n := range leaves {
		if n != 0 && n != pod.MaxPulls {
			r.Eventually(dones[n]).Should(Receive(BeNil()), "pull %d", n)
		}
	}
}

func TestOpenPullsAreBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var i images
	for range maxOpenPulls {
		g.Expect(i.list(&pull{})).To(Succeed())
	}
	g.Expect(errdefs.Is(i.list(&pull{}), errdefs.Unavailable)).To(BeTrue())
	g.Expect(i.list(&pull{container: "c1"})).To(Succeed(), "a container is created all the same")
}

func TestTheSandboxsEndEndsPulls(t *testing.T) {
	t.Parallel()
	h := newHanging()
	r := newImagesRig(t, h.pull(t))
	done := make(chan error, 1)
	go func() {
		_, err := r.pullImage(r.client, &shimv1.PullImageRequest{Reference: pinnedImage})
		done <- err
	}()
	r.Eventually(h.began).Should(Receive())
	close(r.exited)
	var err error
	r.Eventually(done).Should(Receive(&err))
	r.Expect(kindOf(err)).To(Equal("unavailable"), "%v", err)
	r.Expect(err).To(MatchError(ContainSubstring("the sandbox of pod s1 has ended")))
}

// The shim ends only when no child is left, and nobody makes directories after that.
func TestEndWaitsForPulls(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	release := make(chan struct{})
	began := make(chan struct{}, 1)
	r := newServiceRig(t, pullFunc(func(ctx context.Context, _ layers.Request) (layers.Image, error) {
		began <- struct{}{}
		<-ctx.Done()
		<-release // the child takes its time to die
		return layers.Image{}, context.Cause(ctx)
	}))
	go func() { _, _ = r.Create(inNamespace(t), r.request(t, "c1", func(*rspec.Spec) {})) }()
	g.Eventually(began).Should(Receive())
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	g.Expect(r.images.end(soon, errors.New("ends"))).To(MatchError(context.DeadlineExceeded))
	done := make(chan error, 1)
	go func() { done <- r.images.end(t.Context(), errors.New("ends")) }()
	g.Consistently(done, "20ms").ShouldNot(Receive())
	close(release)
	g.Eventually(done).Should(Receive(BeNil()))
	// A create or a removal that comes now would make, or look for, what is being removed.
	for _, p := range []*pull{{}, {container: "c2"}} {
		g.Expect(r.images.list(p)).To(MatchError("ends"))
	}
	g.Expect(r.images.remove(t.Context(), func() error { return nil })).To(MatchError("ends"))

	r.store.mu.Lock()
	r.store.kind = "" // as after close
	r.store.mu.Unlock()
	g.Expect(os.RemoveAll(r.store.images())).To(Succeed())
	resp, err := imageService{r.service}.ListImages(t.Context(), nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.Images).To(BeEmpty())
	g.Expect(r.store.images()).NotTo(BeADirectory())
}

func TestRemoveWaitsForPulls(t *testing.T) {
	t.Parallel()
	h := newHanging()
	r := newImagesRig(t, h.pull(t))
	go func() { _, _ = r.pullImage(r.client, &shimv1.PullImageRequest{Reference: pinnedImage}) }()
	r.Eventually(h.began).Should(Receive())
	client, leave := r.connect()
	done := make(chan error, 1)
	go func() {
		_, err := client.RemoveImage(t.Context(), &shimv1.RemoveImageRequest{Image: pinnedImage})
		done <- err
	}()
	r.Consistently(done, "50ms").ShouldNot(Receive())
	leave()
	r.Eventually(done).Should(Receive(HaveOccurred()))
	close(h.goOn)
	r.Eventually(func() string { _, err := r.removeImage(pinnedImage); return kindOf(err) }).Should(Equal("not-found"))
}

// While images are being removed no pull works: it might count on their layers.
func TestPullsWaitForARemoval(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var i images
	removing, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 2)
	go func() {
		done <- i.remove(t.Context(), func() error { close(removing); <-goOn; return nil })
	}()
	<-removing
	entered := make(chan error, 2)
	for _, p := range []*pull{{}, {container: "c1"}} {
		go func() { entered <- i.enter(t.Context(), p) }()
	}
	g.Consistently(entered, "30ms").ShouldNot(Receive())
	close(goOn)
	g.Eventually(done).Should(Receive(BeNil()))
	for range 2 {
		g.Eventually(entered).Should(Receive(BeNil()))
	}
}
