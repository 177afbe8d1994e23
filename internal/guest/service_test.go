package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/cdhclient"
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/internal/testkit/keybroker"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull"
)

// TestTwoPullsOfOneImage: each makes its bundle, and the layers come once.
func TestTwoPullsOfOneImage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	m.registry.Forget()
	gate := fakeregistry.NewGate()
	m.registry.On(fakeregistry.Blob(""), gate.Fault())
	const pulls = 3
	var failed [pulls]error
	var wg sync.WaitGroup
	for i := range pulls {
		wg.Go(func() { _, failed[i] = m.pull(image, m.path(fmt.Sprint("bundles/", i))) })
	}
	<-gate.Arrived() // the first is at work
	m.registry.Heal()
	gate.Open()
	wg.Wait()
	for i, err := range failed {
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(m.read(fmt.Sprintf("bundles/%d/rootfs/data", i))).To(Equal("from the image"))
	}
	g.Expect(m.mounts()).To(HaveLen(pulls))
	g.Expect(m.registry.Count(http.MethodGet, "/blobs/")).To(Equal(3), "the config and two layers, once")
	g.Expect(m.measured()).To(HaveLen(pulls), "one measurement for each")
}

// TestRestart: what was pulled before needs no network, and what runs works on.
func TestRestart(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	_, err := m.pull(image, m.path("bundles/a"))
	g.Expect(err).NotTo(HaveOccurred())
	work := m.files("work/layers")

	// Another process that starts takes nothing from the one that runs.
	guest := New(m.opts)
	g.Expect(guest.Start(t.Context())).To(Succeed())
	g.Expect(m.read("bundles/a/rootfs/data")).To(Equal("from the image"))
	m.stop()
	g.Expect(m.files("work/layers")).To(Equal(work), "the layers stay")
	m.start()
	m.registry.Stop()
	_, err = m.pull(image, m.path("bundles/b"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(m.read("bundles/b/rootfs/data")).To(Equal("from the image"))
	g.Expect(m.measured()).To(HaveLen(2), "measured also where nothing was fetched")
}

// TestIndex: the answer is the digest of the instance that runs.
func TestIndex(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	dir := t.TempDir()
	summary, err := images.Build(t.Context(), dir, "t", images.Spec{Platforms: []imgspec.Platform{
		{OS: "linux", Architecture: "s390x"}, {OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"},
	}})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(images.Push(t.Context(), dir, "t", m.registry.Host()+"/app:t")).To(Succeed())
	got, err := m.pull(m.registry.Host()+"/app@"+summary.Digest.String(), m.path("bundles/a"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got).NotTo(Equal(summary.Digest.String()))
	var instances []string
	for _, i := range summary.Instances {
		instances = append(instances, i.Manifest.String())
	}
	g.Expect(instances).To(ContainElement(got))
	g.Expect(m.measured()[0].Content).To(And(ContainSubstring(got), ContainSubstring(summary.Digest.String())), "what was asked for, and what it is")
}

// TestKeysOfTheHub: encrypted layers open by the hub's key provider service, by default
// and through Husk's own socket.
func TestKeysOfTheHub(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	broker := keybroker.New(t)
	dir := t.TempDir()
	_, err := images.Build(t.Context(), dir, "t", images.Spec{Layers: []images.Layer{{Files: []images.File{{Path: "/data", Content: []byte("secret")}}}}})
	g.Expect(err).NotTo(HaveOccurred())
	keybroker.EncryptLayout(t, dir, "t", broker.GRPC(t).KeyWrapper(t, hubProvider), keybroker.Recipients(hubProvider))
	g.Expect(images.Push(t.Context(), dir, "t", m.registry.Host()+"/app:t")).To(Succeed())
	socket := strings.TrimPrefix(broker.TTRPC(t).Address.(string), "unix://")
	image, bundle := m.registry.Host()+"/app:t", m.path("bundles/c")

	// A hub that has no such service.
	_, err = m.pull(image, bundle)
	expectRefused(g, err, hubProvider)
	m.stop()

	m.opts.CDHSocket = socket
	m.start()
	broker.Behave(keybroker.Behaviour{Refuse: "not for you"})
	_, err = m.pull(image, bundle)
	expectRefused(g, err, "refused")
	g.Expect(err.Error()).NotTo(ContainSubstring("not for you"), "its words may say too much")
	g.Expect(m.files("bundles")).To(BeEmpty())
	broker.Behave(keybroker.Behaviour{Numbers: true}) // as CDH's serde writes bytes
	_, err = m.pull(image, bundle)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(m.read("bundles/c/rootfs/data")).To(Equal("secret"))
	m.stop()

	// Others in the guest still find the service where it was: at Husk's socket.
	m.opts.WorkDir = m.path("work2")
	m.opts.KeyProviders = m.path("providers")
	m.write("providers", `{"key-providers":{"`+hubProvider+`":{"ttrpc":"unix://`+m.path("cdh.sock")+`"}}}`)
	m.start()
	_, err = m.pull(image, m.path("bundles/d"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(m.read("bundles/d/rootfs/data")).To(Equal("secret"))
}

// TestLayersAtOnce: max_concurrent_layer_downloads_per_image is the number.
func TestLayersAtOnce(t *testing.T) {
	t.Parallel()
	for configured, want := range map[int]int64{0: 3, 1: 1, 5: 5} {
		t.Run(fmt.Sprint(configured), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			line := ""
			if configured > 0 {
				line = fmt.Sprint("max_concurrent_layer_downloads_per_image = ", configured)
			}
			m := newMachine(t, line, nil)
			spec := images.Spec{Compression: images.None}
			for i := range int64(7) {
				spec.Layers = append(spec.Layers, images.Layer{Random: 2000 + i})
			}
			image := m.push("app", spec)
			config := configOf(t, m, image)
			var now, most atomic.Int64
			enough := make(chan struct{})
			open := sync.OnceFunc(func() { close(enough) })
			// Layers are held until as many have come as there should be.
			m.registry.On(fakeregistry.Blob(""), func(w http.ResponseWriter, req *http.Request, r *fakeregistry.Registry) {
				if !strings.Contains(req.URL.Path, config) {
					n := now.Add(1)
					defer now.Add(-1)
					for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
					}
					if n >= want {
						open()
					}
					<-enough
				}
				fakeregistry.Sequence()(w, req, r)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := m.client.PullImage(ctx, image, m.path("bundles/c"))
			open()
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(most.Load()).To(Equal(want))
		})
	}
}

// TestMeasurementThatHangs: an attestation agent that says nothing fails the pull.
func TestMeasurementThatHangs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	release := make(chan struct{})
	defer close(release)
	m.serve("silent", &cdhclient.Fake{Measured: func(cdhclient.Event) error { <-release; return nil }})
	opts := m.opts
	opts.AASocket = m.path("silent")
	guest := New(opts)
	g.Expect(guest.measureTimeout).To(Equal(10*time.Second), "as CDH's")
	guest.measureTimeout = 50 * time.Millisecond
	g.Expect(guest.Start(t.Context())).To(Succeed())
	defer func() { g.Expect(guest.Close(t.Context())).To(Succeed()) }()
	_, err := guest.Pull(t.Context(), image, m.path("bundles/c"), nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	g.Expect(m.files("bundles")).To(BeEmpty())
	g.Expect(m.mounts()).To(BeEmpty())

	// One that is gone, but whose socket is there, is no guest without one.
	l, err := net.Listen("unix", m.path("dead"))
	g.Expect(err).NotTo(HaveOccurred())
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	g.Expect(l.Close()).To(Succeed())
	opts.AASocket = m.path("dead")
	dead := New(opts)
	_, err = dead.Pull(t.Context(), image, m.path("bundles/c"), nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	g.Expect(m.files("bundles")).To(BeEmpty())
	g.Expect(dead.Close(t.Context())).To(Succeed())
}

// TestClientThatGoes ends its pull.
func TestClientThatGoes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	image := m.push("app", appSpec())
	gone := make(chan struct{})
	hang := fakeregistry.Hang()
	m.registry.On(fakeregistry.Blob(""), func(w http.ResponseWriter, req *http.Request, r *fakeregistry.Registry) {
		defer close(gone)
		hang(w, req, r)
	})
	other, err := cdhclient.Dial(t.Context(), m.path("cdh.sock"))
	g.Expect(err).NotTo(HaveOccurred())
	done := make(chan error, 1)
	go func() {
		_, err := other.PullImage(t.Context(), image, m.path("bundles/c"))
		done <- err
	}()
	g.Eventually(func() int { return m.registry.Count(http.MethodGet, "/blobs/") }).Should(Equal(1))
	g.Expect(other.Close()).To(Succeed())
	g.Expect(<-done).To(HaveOccurred())
	<-gone // the request to the registry ended with it
	g.Eventually(func() []string { return m.files("bundles") }).Should(BeEmpty())
	m.registry.Heal()
	// And the bundle is free again.
	g.Eventually(func() error { _, err := m.pull(image, m.path("bundles/c")); return err }).Should(Succeed())

	// A deadline ends it too; ttrpc sends it with the request.
	late := make(chan struct{})
	m.registry.On(fakeregistry.Manifest(""), func(w http.ResponseWriter, req *http.Request, r *fakeregistry.Registry) {
		defer close(late)
		hang(w, req, r)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = m.client.PullImage(ctx, m.registry.Host()+"/app:t", m.path("bundles/d"))
	g.Expect(err).To(MatchError(ContainSubstring("deadline")))
	<-late
	g.Eventually(func() []string { return m.files("bundles/d") }).Should(BeEmpty())
}

// TestProgressAndLocations: what the debug commands have and the service has not.
func TestProgressAndLocations(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	m := newMachine(t, "", nil)
	dir := t.TempDir()
	summary, err := images.Build(t.Context(), dir, "t", images.Spec{Layers: []images.Layer{{Random: 1000}, {Random: 500}}})
	g.Expect(err).NotTo(HaveOccurred())
	location := "oci:" + dir + ":t"
	opts := m.opts
	opts.Locations = true
	var last layerpull.Progress
	pulled, err := New(opts).Pull(t.Context(), location, "", func(p layerpull.Progress) { last = p })
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(pulled.ManifestDigest).To(Equal(summary.Instances[0].Manifest.String()))
	g.Expect(pulled.Layers).To(Equal(2))
	g.Expect(pulled.Bytes).To(BeEquivalentTo(1500))
	g.Expect(last).To(Equal(layerpull.Progress{Layers: 2, LayersDone: 2, Bytes: pulled.FetchedBytes, BytesDone: pulled.FetchedBytes}))
	g.Expect(New(opts).Find(location)).To(HaveField("Reference", pulled.Reference))

	// The host must not choose files of the guest.
	archive := m.path("layout")
	g.Expect(os.CopyFS(archive, os.DirFS(dir))).To(Succeed())
	for _, name := range []string{location, "oci:" + archive, "oci-archive:" + filepath.Join(dir, "index.json"), "dir:" + dir, "docker-archive:/x", "containers-storage:x"} {
		_, err = m.pull(name, m.path("bundles/c"))
		expectRefused(g, err, "")
		g.Expect(m.files("bundles")).To(BeEmpty())
	}
}

// configOf is the digest of an image's config.
func configOf(t *testing.T, m *machine, image string) string {
	t.Helper()
	_, d, _ := strings.Cut(image, "@")
	resp, err := http.Get(m.registry.URL() + "/v2/app/manifests/" + d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var manifest imgspec.Manifest
	if err := json.NewDecoder(resp.Body).Decode(&manifest); err != nil {
		t.Fatal(err)
	}
	return manifest.Config.Digest.Encoded()
}
