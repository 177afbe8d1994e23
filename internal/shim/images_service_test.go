package shim

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/keeper"
	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull"
	"github.com/husk-cri/husk/pkg/registryauth"
)

const pinnedImage = "r.example/a@sha256:" + digestHex

// livingTasks are containers that run until exited is closed.
type livingTasks struct {
	*fakeTasks
	exited chan struct{}
}

func (l livingTasks) Wait(ctx context.Context, req *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	select {
	case <-l.exited:
	case <-ctx.Done():
	}
	return l.fakeTasks.Wait(ctx, req)
}

// pullFunc is a puller in this process.
type pullFunc func(ctx context.Context, req layers.Request) (layers.Image, error)

func (f pullFunc) Run(ctx context.Context, req layers.Request) (layers.Image, error) {
	return f(ctx, req)
}

// somePulled is what a puller answers.
func somePulled(t *testing.T) layers.Image {
	t.Helper()
	image := layers.Image{Layers: 2, Bytes: 9, PulledAt: time.Unix(0, 7), Took: 8}
	if err := errors.Join(
		image.ManifestDigest.UnmarshalText([]byte("sha256:"+digestHex)), image.ImageID.UnmarshalText([]byte(digestHex))); err != nil {
		t.Fatal(err)
	}
	return image
}

// imagesRig is a service on the socket of a real keeper's relay.
type imagesRig struct {
	serviceRig
	*WithT
	t      *testing.T
	client shimv1.ImagesClient
	exited chan struct{}
}

// newImagesRig serves a pod whose sandbox is created, unless puller is nil.
func newImagesRig(t *testing.T, puller imagePuller, options ...func(*rspec.Spec)) *imagesRig {
	t.Helper()
	r := &imagesRig{serviceRig: newServiceRig(t, puller), WithT: NewWithT(t), t: t, exited: make(chan struct{})}
	r.TaskService = livingTasks{r.inner, r.exited}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(taskPlugin{}.UnaryInterceptor()))
	r.Expect(err).NotTo(HaveOccurred())
	r.Expect(taskPlugin{r.service}.RegisterTTRPC(server)).To(Succeed())
	r.listen(r.pod.TaskSocket(), func(l net.Listener) error { return server.Serve(context.WithoutCancel(t.Context()), l) })
	relay := keeper.Relay{Dial: func(ctx context.Context) (net.Conn, error) { return keeper.Dial(ctx, r.pod) }}
	r.listen(r.pod.Socket(), func(l net.Listener) error { return relay.Serve(context.WithoutCancel(t.Context()), l) })
	r.client, _ = r.connect()
	if puller != nil {
		_, err = r.Create(inNamespace(t), r.request(t, "s1", func(spec *rspec.Spec) {
			asSandbox(spec)
			for _, o := range options {
				o(spec)
			}
		}))
		r.Expect(err).NotTo(HaveOccurred())
	}
	return r
}

func (r *imagesRig) listen(path string, serve func(net.Listener) error) {
	r.t.Helper()
	l, err := (&net.ListenConfig{}).Listen(r.t.Context(), "unix", path)
	r.Expect(err).NotTo(HaveOccurred())
	r.t.Cleanup(func() { _ = l.Close() })
	go func() { _ = serve(l) }()
}

func (r *imagesRig) connect() (client shimv1.ImagesClient, leave func()) {
	r.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(r.t.Context(), "unix", r.pod.Socket())
	r.Expect(err).NotTo(HaveOccurred())
	c := ttrpc.NewClient(conn)
	leave = sync.OnceFunc(func() { _ = c.Close() })
	r.t.Cleanup(leave)
	return shimv1.NewImagesClient(c), leave
}

// pullImage pulls by a client and returns all that was streamed.
func (r *imagesRig) pullImage(client shimv1.ImagesClient, req *shimv1.PullImageRequest) ([]*shimv1.PullImageResponse, error) {
	stream, err := client.PullImage(r.t.Context(), req)
	if err != nil {
		return nil, err
	}
	var all []*shimv1.PullImageResponse
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, resp)
	}
}

func (r *imagesRig) status() *shimv1.ImageStatusResponse {
	r.t.Helper()
	resp, err := r.client.ImageStatus(r.t.Context(), &shimv1.ImageStatusRequest{})
	r.Expect(err).NotTo(HaveOccurred())
	return resp
}

func (r *imagesRig) list() []*shimv1.Image {
	r.t.Helper()
	resp, err := r.client.ListImages(r.t.Context(), &shimv1.ListImagesRequest{})
	r.Expect(err).NotTo(HaveOccurred())
	return resp.Images
}

func (r *imagesRig) removeImage(name string) (uint64, error) {
	resp, err := r.client.RemoveImage(r.t.Context(), &shimv1.RemoveImageRequest{Image: name})
	return resp.GetFreed(), err
}

// kindOf returns what an error says in its details.
func kindOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if k, ok := d.(*shimv1.Kind); ok {
			return k.Kind
		}
	}
	return ""
}

// inPod gives the sandbox a network, a resolv.conf, a cgroup and a name.
func inPod(spec *rspec.Spec) {
	spec.Linux.Namespaces = []rspec.LinuxNamespace{{Type: rspec.NetworkNamespace, Path: "/ns"}}
	spec.Linux.CgroupsPath = "/pod/crio-s1"
	spec.Mounts = []rspec.Mount{{Destination: "/etc/resolv.conf", Source: "/pod/resolv.conf"}}
	spec.Annotations[crioMetadata] = `{"name":"web-0","uid":"u-1","namespace":"shop","attempt":3}`
}

func TestPullImageStreams(t *testing.T) {
	t.Parallel()
	asked := make(chan layers.Request, 1)
	r := newImagesRig(t, pullFunc(func(_ context.Context, req layers.Request) (layers.Image, error) {
		req.Progress(layerpull.Progress{Layers: 2, Bytes: 100})
		req.Progress(layerpull.Progress{Layers: 2, LayersDone: 2, Bytes: 100, BytesDone: 100})
		asked <- req
		return somePulled(t), nil
	}), inPod)
	all, err := r.pullImage(r.client, &shimv1.PullImageRequest{
		Reference: "r.example/a:tag@sha256:" + digestHex, Credentials: &shimv1.Credentials{Username: "u", Password: "p", Auth: "a", IdentityToken: "i", RegistryToken: "t"},
	})
	r.Expect(err).NotTo(HaveOccurred())
	r.Expect(len(all)).To(BeNumerically(">=", 2))
	last := all[len(all)-1]
	r.Expect(last.Result).To(And(
		HaveField("Reference", pinnedImage), HaveField("ManifestDigest", "sha256:"+digestHex), HaveField("ImageId", digestHex),
		HaveField("Layers", uint32(2)), HaveField("Bytes", uint64(9)), HaveField("PulledAt", int64(7)), HaveField("Took", int64(8))))
	for _, resp := range all[:len(all)-1] {
		r.Expect(resp.Result).To(BeNil())
	}
	r.Expect(all[len(all)-2].Progress).To(And(
		HaveField("Layers", uint32(2)), HaveField("LayersDone", uint32(2)), HaveField("Bytes", uint64(100)), HaveField("BytesDone", uint64(100))),
		"the last progress is never lost")

	req := <-asked
	r.Expect(req.Pull.Reference).To(Equal(pinnedImage))
	r.Expect(req.Pull.Credentials).To(Equal(registryauth.Open{Username: "u", Password: "p", Auth: "a", IdentityToken: "i", RegistryToken: "t"}))
	r.Expect(req.Place).To(Equal(sandbox.Place{NetNS: "/ns", ResolvConf: "/pod/resolv.conf", Cgroup: "/pod"}))
	r.Expect(req.Name).To(Equal(pod.PullName("s1", 0)))
	r.Expect(req.OOMScoreAdj).To(Equal(pullOOMScore))
	r.Expect(req.Pull.Timeout).To(BeZero(), "the client's patience is the limit")
	r.Expect(r.status()).To(And(HaveField("SandboxId", "s1"), HaveField("PodName", "web-0"), HaveField("PodNamespace", "shop"), HaveField("PodUid", "u-1"), HaveField("Pulls", BeEmpty())))
	r.Expect(r.status().Store.Kind).To(Equal("memory"))
}

// Every kind survives the server, the relay and the client, for a stream and for a call.
func TestImageErrors(t *testing.T) {
	t.Parallel()
	kinds := make(chan errdefs.Kind, 1)
	const text = "GET /v2/?scope=repository%3Aa: 100% refused"
	r := newImagesRig(t, pullFunc(func(context.Context, layers.Request) (layers.Image, error) {
		return layers.Image{}, errdefs.Newf(<-kinds, "pull "+pinnedImage, "%s", text)
	}))
	for _, kind := range errdefs.Kinds() {
		kinds <- kind
		_, err := r.pullImage(r.client, &shimv1.PullImageRequest{Reference: pinnedImage})
		r.Expect(status.Code(err)).To(Equal(kind.Code()), "%v", err)
		r.Expect(kindOf(err)).To(Equal(kind.String()), "%v", err)
		r.Expect(status.Convert(err).Message()).To(And(ContainSubstring(pinnedImage), ContainSubstring(text)), "as it was")
	}
	_, err := r.removeImage("100%nothing")
	r.Expect(status.Code(err)).To(Equal(codes.NotFound))
	r.Expect(kindOf(err)).To(Equal("not-found"))
	r.Expect(status.Convert(err).Message()).To(ContainSubstring("100%nothing"))
}

func TestPullImageRefuses(t *testing.T) {
	t.Parallel()
	r := newImagesRig(t, pullFunc(func(context.Context, layers.Request) (layers.Image, error) {
		return layers.Image{}, errors.New("must not be asked")
	}))
	for _, ref := range []string{"", "r.example/a", "r.example/a:1", "NO NAME", "r.example/a@sha256:short", strings.Repeat("a", 100000)} {
		_, err := r.pullImage(r.client, &shimv1.PullImageRequest{Reference: ref})
		r.Expect(kindOf(err)).To(Equal("invalid-argument"), "%v", err)
		r.Expect(len(err.Error())).To(BeNumerically("<", 4*maxReference))
	}
	_, err := r.removeImage(strings.Repeat("a", maxReference+1))
	r.Expect(kindOf(err)).To(Equal("invalid-argument"), "%v", err)
	early := newImagesRig(t, nil)
	_, err = early.pullImage(early.client, &shimv1.PullImageRequest{Reference: pinnedImage})
	early.Expect(kindOf(err)).To(Equal("unavailable"), "there is no sandbox yet: %v", err)
	early.Expect(early.status()).To(And(HaveField("SandboxId", "s1"), HaveField("PodName", "")))
	early.Expect(early.list()).To(BeEmpty())

	// The sandbox exits: its network is gone.
	close(r.exited)
	r.Eventually(func() string {
		_, err := r.pullImage(r.client, &shimv1.PullImageRequest{Reference: pinnedImage})
		return kindOf(err)
	}).Should(Equal("unavailable"))
}

func TestAPanicIsAnErrorOfItsCall(t *testing.T) {
	t.Parallel()
	r := newImagesRig(t, pullFunc(func(context.Context, layers.Request) (layers.Image, error) {
		var nothing map[string]*shimv1.Image
		return layers.Image{Layers: int(nothing["x"].Layers)}, nil
	}))
	_, err := r.pullImage(r.client, &shimv1.PullImageRequest{Reference: pinnedImage})
	r.Expect(kindOf(err)).To(Equal("internal"), "%v", err)
	r.Expect(r.status().Pulls).To(BeEmpty(), "and the pod lives on")
}

func TestIdentityOfAPod(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		annotation string
		want       podIdentity
	}{
		"CRI-O's":  {`{"name":"a","namespace":"b","uid":"c"}`, podIdentity{"a", "b", "c"}},
		"none":     {"", podIdentity{}},
		"damaged":  {`{"name":`, podIdentity{}},
		"a number": {`{"name":"a","uid":7}`, podIdentity{}},
		"too long": {`{"name":"` + strings.Repeat("n", 5<<20) + `"}`, podIdentity{Name: strings.Repeat("n", maxName)}},
		"a rune":   {`{"name":"` + strings.Repeat("n", maxName-1) + `ö"}`, podIdentity{Name: strings.Repeat("n", maxName-1)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			g.Expect(identityOf(&rspec.Spec{Annotations: map[string]string{crioMetadata: tc.annotation}})).To(Equal(tc.want))
		})
	}
}
