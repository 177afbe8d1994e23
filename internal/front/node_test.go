package front_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/imageref"
)

// node is a front before a fake CRI-O, and clients of both.
type node struct {
	*WithT
	cri.RuntimeServiceClient
	cri.ImageServiceClient
	crio     *fakeCRIO
	registry *fakeRegistry
	records  *storetest.Memory
	listings atomic.Int32 // how often the front has listed the records
	server   *front.Server
	stopCRIO func()
	conn     *grpc.ClientConn
	direct   *grpc.ClientConn
}

// counted counts the listings.
type counted struct {
	*storetest.Memory
	listings *atomic.Int32
}

func (c counted) List(ctx context.Context) ([]imageref.Record, error) {
	c.listings.Add(1)
	return c.Memory.List(ctx)
}

// newNode starts both; change may change the front's collaborators before.
func newNode(t testing.TB, config front.Config, change ...func(*front.Collaborators)) *node {
	t.Helper()
	records := new(storetest.Memory)
	n := &node{
		WithT: NewWithT(t), records: records, crio: &fakeCRIO{records: records},
		registry: &fakeRegistry{store: records, images: map[string]manifestonly.Image{}},
	}
	config.Backend = filepath.Join(t.TempDir(), "crio.sock")
	backend := grpc.NewServer(grpc.UnaryInterceptor(n.crio.sees))
	cri.RegisterRuntimeServiceServer(backend, n.crio)
	cri.RegisterImageServiceServer(backend, n.crio)
	listener, err := net.Listen("unix", config.Backend)
	n.Expect(err).NotTo(HaveOccurred())
	go func() { _ = backend.Serve(listener) }()
	t.Cleanup(backend.Stop)
	n.stopCRIO = backend.Stop

	if config.Handlers == nil {
		config.Handlers = allHandlers()
	}
	with := front.Collaborators{
		Puller: n.registry, Held: n.registry, Records: counted{records, &n.listings}, Names: n.registry, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&with)
	}
	server, err := front.New(config, with)
	n.Expect(err).NotTo(HaveOccurred())
	n.server = server
	socket := filepath.Join(t.TempDir(), "front.sock")
	own, err := net.Listen("unix", socket)
	n.Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, own) }()
	t.Cleanup(func() {
		cancel()
		n.Expect(<-done).To(Succeed())
		n.Expect(server.Close()).To(Succeed())
	})
	n.conn, n.direct = connect(t, socket), connect(t, config.Backend)
	n.RuntimeServiceClient = cri.NewRuntimeServiceClient(n.conn)
	n.ImageServiceClient = cri.NewImageServiceClient(n.conn)
	return n
}

func connect(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// sandbox runs a pod under a handler and returns the config kubelet keeps for it.
func (n *node) sandbox(name, handler string) (string, *cri.PodSandboxConfig) {
	config := &cri.PodSandboxConfig{
		Metadata:    &cri.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "default"},
		Labels:      map[string]string{"io.kubernetes.pod.uid": "uid-" + name},
		Annotations: podAnnotations(),
	}
	n.crio.mu.Lock()
	defer n.crio.mu.Unlock()
	n.crio.sandboxes = append(n.crio.sandboxes, &cri.PodSandbox{
		Id: "sandbox-" + name, Metadata: config.Metadata, Labels: config.Labels,
		Annotations: config.Annotations, RuntimeHandler: handler,
	})
	return "sandbox-" + name, config
}

// addImage gives CRI-O an ordinary image with layers.
func (n *node) addImage(name, id string, uid *int64, username string) {
	image := &cri.Image{Id: id, RepoTags: []string{name}, Size: 1 << 20, Username: username}
	if uid != nil {
		image.Uid = &cri.Int64Value{Value: *uid}
	}
	n.crio.mu.Lock()
	defer n.crio.mu.Unlock()
	n.crio.images = append(n.crio.images, image)
}

func (n *node) lastCreated() *cri.ContainerConfig {
	n.crio.mu.Lock()
	defer n.crio.mu.Unlock()
	n.Expect(n.crio.created).NotTo(BeEmpty())
	return n.crio.created[len(n.crio.created)-1].Config
}

// podAnnotations are those that every pod has in kubelet's image calls.
func podAnnotations() map[string]string {
	return map[string]string{"kubernetes.io/config.seen": "2026-11-23T12:00:00Z", "kubernetes.io/config.source": "api"}
}

// pull pulls by the handler annotation, as a client without pods can.
func (n *node) pull(name string) string {
	answer, err := n.PullImage(context.Background(), &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: name, Annotations: map[string]string{annotations.RuntimeHandler: "husk"}},
	})
	n.Expect(err).NotTo(HaveOccurred())
	return answer.ImageRef
}

// lastContainer is the ID of the container that was made last.
func (n *node) lastContainer() string {
	n.crio.mu.Lock()
	defer n.crio.mu.Unlock()
	return n.crio.containers[len(n.crio.containers)-1].Id
}
