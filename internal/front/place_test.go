package front_test

import (
	"context"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/annotations"
)

// placed notes where it is asked to pull, and pulls.
type placed struct {
	registry *fakeRegistry
	mu       sync.Mutex
	places   []front.Place
}

func (p *placed) PullAt(ctx context.Context, place front.Place, req manifestonly.Request) (manifestonly.Result, error) {
	p.mu.Lock()
	p.places = append(p.places, place)
	p.mu.Unlock()
	return p.registry.Pull(ctx, req)
}

func (p *placed) FetchAt(ctx context.Context, place front.Place, req manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error) {
	p.mu.Lock()
	p.places = append(p.places, place)
	p.mu.Unlock()
	return p.registry.Fetch(ctx, req)
}

// inPods is a node on which the handler husk pulls in the pod's network.
func inPods(t *testing.T, p *placed) *node {
	handlers := fakeHandlers{"runc": {Name: "runc"}, "husk": {Name: "husk", GuestPull: true, ResolvesNames: true, PullInSandbox: true}}
	return newNode(t, front.Config{Handlers: handlers}, func(c *front.Collaborators) {
		// Whoever pulls from the host's network fails the test.
		p.registry, c.Puller, c.Placed = c.Puller.(*fakeRegistry), noPuller{}, p
	})
}

type noPuller struct{ front.Puller }

func (noPuller) Pull(context.Context, manifestonly.Request) (manifestonly.Result, error) {
	panic("pulled from the host's network")
}

func TestPullInSandbox(t *testing.T) {
	t.Parallel()
	p := new(placed)
	n := inPods(t, p)
	n.registry.publish(appImage, "web", "")
	_, config := n.sandbox("pod", "husk")
	for _, spec := range []*cri.ImageSpec{{}, {RuntimeHandler: "husk"}} {
		spec.Image = appImage
		n.crio.asked = nil
		_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec, SandboxConfig: config})
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(n.crio.asked).To(Equal([]string{"ListPodSandbox", "PodSandboxStatus sandbox-pod"}), "asked once")
	}
	n.Expect(p.places).To(HaveLen(2))
	for _, place := range p.places {
		n.Expect(string(place.Sandbox)).To(ContainSubstring(`"runtimeSpec"`))
		n.Expect(place.CgroupParent).To(BeEmpty())
	}
}

// TestPullInSandboxNeedsThePod: what cannot be pulled from the pod's network is not
// pulled at all.
func TestPullInSandboxNeedsThePod(t *testing.T) {
	t.Parallel()
	p := new(placed)
	n := inPods(t, p)
	n.registry.publish(appImage, "web", "")
	_, gone := n.sandbox("gone", "husk")
	n.crio.sandboxes = nil
	_, liar := n.sandbox("liar", "husk")
	liar.Annotations[annotations.CRIOResolvPath] = "/etc/shadow"
	_, host := n.sandbox("host", "husk")
	host.Labels["io.kubernetes.cri-o.HostNetwork"] = "true"
	for _, c := range []struct {
		name   string
		config *cri.PodSandboxConfig
		spec   *cri.ImageSpec
		code   codes.Code
	}{
		{"the pod is gone", gone, &cri.ImageSpec{RuntimeHandler: "husk"}, codes.NotFound},
		{"the pod is gone, no handler", gone, &cri.ImageSpec{}, codes.NotFound},
		{"no pod", nil, &cri.ImageSpec{RuntimeHandler: "husk"}, codes.NotFound},
		{"no pod, by annotation", nil, &cri.ImageSpec{Annotations: map[string]string{annotations.RuntimeHandler: "husk"}}, codes.NotFound},
		{"the pod says where its resolv.conf is", liar, &cri.ImageSpec{}, codes.InvalidArgument},
		{"the pod says that it is in the host's network", host, &cri.ImageSpec{RuntimeHandler: "husk"}, codes.InvalidArgument},
	} {
		c.spec.Image = appImage
		_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: c.spec, SandboxConfig: c.config})
		n.Expect(status.Code(err)).To(Equal(c.code), "%s: %v", c.name, err)
	}
	n.Expect(p.places).To(BeEmpty())
	n.Expect(n.registry.asked).To(BeEmpty())
	n.Expect(n.crio.pulled).To(BeEmpty())
}

func TestSeparatePull(t *testing.T) {
	t.Parallel()
	p := new(placed)
	n := newNode(t, front.Config{SeparatePull: true}, func(c *front.Collaborators) {
		p.registry, c.Puller, c.Placed = c.Puller.(*fakeRegistry), noPuller{}, p
	})
	n.registry.publish(appImage, "web", "")
	_, config := n.sandbox("pod", "husk")
	config.Linux = &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1"}
	for _, config := range []*cri.PodSandboxConfig{config, nil} {
		_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"}, SandboxConfig: config})
		n.Expect(err).NotTo(HaveOccurred())
	}
	n.Expect(p.places).To(Equal([]front.Place{{CgroupParent: "/kubepods/pod1"}, {}}))

	// A front that has nobody for it says so.
	n = newNode(t, front.Config{SeparatePull: true})
	_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"}})
	n.Expect(status.Code(err)).To(Equal(codes.Unimplemented))
	n.Expect(n.registry.asked).To(BeEmpty())
}

func TestHandlerLimits(t *testing.T) {
	t.Parallel()
	handlers := fakeHandlers{
		"runc": {Name: "runc"}, "husk": {Name: "husk", GuestPull: true, ResolvesNames: true},
		"few":   {Name: "few", GuestPull: true, ResolvesNames: true, MaxLayers: 1},
		"small": {Name: "small", GuestPull: true, ResolvesNames: true, MaxImageBytes: 1<<20 - 1},
		"exact": {Name: "exact", GuestPull: true, ResolvesNames: true, MaxImageBytes: 1 << 20, MaxLayers: 2},
	}
	n := newNode(t, front.Config{Handlers: handlers})
	n.registry.publish(appImage, "web", "") // 2 layers, 1 MiB
	n.pull(appImage)
	for name, h := range handlers {
		if !h.GuestPull {
			continue
		}
		// The limits go with the pull ...
		_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage, RuntimeHandler: name}})
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(n.registry.asked[len(n.registry.asked)-1].Limits).
			To(Equal(manifestonly.Limits{MaxImageBytes: h.MaxImageBytes, MaxLayers: h.MaxLayers}))
		// ... and hold for what another handler's pull brought.
		sandbox, _ := n.sandbox("pod-"+name, name)
		_, err = n.create(t, sandbox, &cri.ImageSpec{Image: appImage})
		if name == "husk" || name == "exact" {
			n.Expect(err).NotTo(HaveOccurred(), name)
			continue
		}
		n.Expect(status.Code(err)).To(Equal(codes.ResourceExhausted), name)
		says := map[string]string{"few": "2 layers", "small": "1048576 bytes"}[name]
		n.Expect(err).To(MatchError(And(ContainSubstring(says), ContainSubstring(name))))
	}
	n.Expect(n.crio.created).To(HaveLen(2))
}

func TestReconfigure(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{MaxPulls: 1})
	n.registry.publish(appImage, "web", "")
	pull := func() error {
		_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage}})
		return err
	}
	// Whose a pull without pod and handler is.
	n.Expect(pull()).To(Succeed())
	n.Expect(n.registry.asked).To(BeEmpty())
	n.server.Reconfigure(front.Config{Handlers: allHandlers(), MaxPulls: 1, DefaultHandler: "husk"})
	n.Expect(pull()).To(Succeed())
	n.Expect(n.registry.asked).To(HaveLen(1))
	// Presence checks without a handler.
	presence := &cri.ImageSpec{Image: appImage, Annotations: podAnnotations()}
	n.Expect(n.status(t, presence)).To(BeNil())
	n.server.Reconfigure(front.Config{Handlers: allHandlers(), MaxPulls: 1, DefaultHandler: "husk", AssumeHandler: "husk"})
	n.Expect(n.status(t, presence)).NotTo(BeNil())
	// A slot that is taken stays taken by a reload that leaves their number alone.
	entered, leave := make(chan struct{}, 3), make(chan struct{})
	n.registry.wait = func(context.Context) { entered <- struct{}{}; <-leave }
	release := sync.OnceFunc(func() { close(leave) })
	defer release()
	results := make(chan error, 3)
	go func() { results <- pull() }()
	<-entered
	n.server.Reconfigure(front.Config{Handlers: allHandlers(), MaxPulls: 1, DefaultHandler: "husk"})
	go func() { results <- pull() }()
	n.Consistently(entered, "100ms").ShouldNot(Receive())
	// With more of them the next pull begins at once.
	n.server.Reconfigure(front.Config{Handlers: allHandlers(), MaxPulls: 2, DefaultHandler: "husk"})
	go func() { results <- pull() }()
	n.Eventually(entered, "10s").Should(Receive())
	release()
	for range 3 {
		n.Expect(<-results).To(Succeed())
	}
}

// TestReconfiguredHandlers: crio.conf was read again.
func TestReconfiguredHandlers(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{Handlers: fakeHandlers{"runc": {Name: "runc"}}})
	n.registry.publish(appImage, "web", "")
	spec := &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"}
	_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec})
	n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
	n.server.Reconfigure(front.Config{Handlers: fakeHandlers{"runc": {Name: "runc"}, "husk": {Name: "husk", GuestPull: true}}})
	_, err = n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec})
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(n.registry.asked).To(HaveLen(1))
	n.server.Reconfigure(front.Config{Handlers: fakeHandlers{"runc": {Name: "runc"}, "kata": {Name: "kata", GuestPull: true}}})
	_, err = n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec})
	n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
	n.Expect(n.crio.pulled).To(BeEmpty())
}

// TestLastHandlerLeavesWhilePodsRun: what its pods pull now is not pulled to the host.
func TestLastHandlerLeavesWhilePodsRun(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "", "")
	n.addImage(appImage, hexID('a'), nil, "")
	guest, guestConfig := n.sandbox("guest", "husk")
	runc, runcConfig := n.sandbox("runc", "runc")
	spec := &cri.ImageSpec{Image: appImage}
	_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec, SandboxConfig: guestConfig})
	n.Expect(err).NotTo(HaveOccurred())
	n.server.Reconfigure(front.Config{Handlers: fakeHandlers{"runc": {Name: "runc"}}})
	_, err = n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec, SandboxConfig: guestConfig})
	n.Expect(err).To(MatchError(ContainSubstring("husk")))
	n.Expect(n.crio.pulled).To(BeEmpty())
	_, err = n.create(t, guest, spec)
	n.Expect(err).To(MatchError(ContainSubstring("husk")))
	n.Expect(n.crio.created).To(BeEmpty())
	// Ordinary pods are as they were.
	_, err = n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec, SandboxConfig: runcConfig})
	n.Expect(err).NotTo(HaveOccurred())
	_, err = n.create(t, runc, spec)
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(n.crio.pulled).To(HaveLen(1))
	n.Expect(n.crio.created).To(HaveLen(1))
}
