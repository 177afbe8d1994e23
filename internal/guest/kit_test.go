package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/testkit/cdhclient"
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/images"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		os.Exit(child(text))
	}
	os.Exit(cdhclient.Isolate(m.Run))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
}

// machine is a guest with a registry, a hub behind it, an attestation agent, and Husk at
// its socket.
type machine struct {
	t        *testing.T
	dir      string
	registry *fakeregistry.Registry
	opts     Options
	client   *cdhclient.Client
	stop     func()

	mu     sync.Mutex
	events []cdhclient.Event
	refuse error
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// newMachine starts one; extra is put into [image].
func newMachine(t *testing.T, extra string, resources map[string][]byte) *machine {
	t.Helper()
	needRoot(t)
	m := &machine{t: t, dir: t.TempDir(), registry: fakeregistry.New(t, fakeregistry.Options{Log: nil})}
	g := NewWithT(t)
	for _, dir := range []string{"bundles", "keys", "aa", "hub"} {
		g.Expect(os.Mkdir(m.path(dir), 0o755)).To(Succeed())
	}
	m.write("cdh.toml", fmt.Sprintf("[image]\nwork_dir = %q\n%s\n[[image.registry_config.registry]]\nlocation = %q\ninsecure = true\n",
		m.path("work"), extra, m.registry.Host()))
	m.serve("hub/s", &cdhclient.Fake{Resources: resources, Echo: "api.FutureService"})
	m.serve("aa/s", &cdhclient.Fake{Measured: func(e cdhclient.Event) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.events = append(m.events, e)
		return m.refuse
	}})
	m.opts = Options{
		Config: m.path("cdh.toml"), Cmdline: "/dev/null", RunDir: m.path("run"), BundleParent: m.path("bundles"),
		KeysDir: m.path("keys"), CDHSocket: m.path("hub/s"), AASocket: m.path("aa/s"), Log: slog.New(slog.DiscardHandler),
	}
	m.start()
	return m
}

func (m *machine) write(name, content string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) serve(name string, f *cdhclient.Fake) {
	m.t.Helper()
	l, err := new(net.ListenConfig).Listen(m.t.Context(), "unix", m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	go func() { _ = f.Serve(m.t.Context(), l) }()
}

// start starts Husk; stop ends it in order.
func (m *machine) start() {
	m.t.Helper()
	g := NewWithT(m.t)
	guest := New(m.opts)
	g.Expect(guest.Start(m.t.Context())).To(Succeed())
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() { done <- guest.Serve(ctx, m.path("cdh.sock")) }()
	g.Eventually(func() error {
		c, err := cdhclient.Dial(ctx, m.path("cdh.sock"))
		m.client = c
		return err
	}).Should(Succeed())
	m.stop = sync.OnceFunc(func() {
		_ = m.client.Close()
		cancel()
		g.Expect(<-done).To(Succeed())
		g.Expect(guest.Close(context.WithoutCancel(ctx))).To(Succeed())
	})
	m.t.Cleanup(m.stop)
}

// push builds an image and returns its name with the digest.
func (m *machine) push(name string, spec images.Spec) string {
	m.t.Helper()
	dir := m.t.TempDir()
	summary, err := images.Build(m.t.Context(), dir, "t", spec)
	if err == nil {
		err = images.Push(m.t.Context(), dir, "t", m.registry.Host()+"/"+name+":t")
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return m.registry.Host() + "/" + name + "@" + summary.Digest.String()
}

func (m *machine) pull(image, bundle string) (string, error) {
	return m.client.PullImage(m.t.Context(), image, bundle)
}

func (m *machine) measured() []cdhclient.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]cdhclient.Event(nil), m.events...)
}

// mounts are the overlays of this test.
func (m *machine) mounts() []string {
	m.t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, m.dir) && strings.Contains(line, " - overlay ") {
			found = append(found, line)
		}
	}
	return found
}

// files lists what is below a directory, itself not.
func (m *machine) files(name string) []string {
	m.t.Helper()
	found := []string{}
	err := filepath.WalkDir(m.path(name), func(path string, _ os.DirEntry, err error) error {
		if path != m.path(name) {
			found = append(found, strings.TrimPrefix(path, m.path(name)+"/"))
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	return found
}

func (m *machine) read(name string) string {
	m.t.Helper()
	data, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(data)
}

func (m *machine) spec(bundle string) rspec.Spec {
	m.t.Helper()
	var s rspec.Spec
	if err := json.Unmarshal([]byte(m.read(bundle+"/config.json")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// keys makes a key pair for encrypted layers; Husk has the private one.
func (m *machine) keys() *images.Encryption {
	m.t.Helper()
	dir := m.t.TempDir()
	if err := images.GenerateKeys(dir); err != nil {
		m.t.Fatal(err)
	}
	private, err := os.ReadFile(filepath.Join(dir, images.PrivateKeyFile))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write("keys/key.pem", string(private))
	public, err := os.ReadFile(filepath.Join(dir, images.PublicKeyFile))
	if err != nil {
		m.t.Fatal(err)
	}
	return &images.Encryption{PublicKeys: [][]byte{public}}
}

// appSpec is an image with a named user, whose layers hide and add files.
func appSpec() images.Spec {
	return images.Spec{
		Layers: []images.Layer{
			{Files: []images.File{
				{Path: "/etc/passwd", Content: []byte("root:x:0:0::/root:/bin/sh\nweb:x:1234:1235::/srv:/bin/sh\n")},
				{Path: "/etc/group", Content: []byte("web:x:1235:\nextra:x:77:web\n")},
			}},
			{Files: []images.File{{Path: "/data", Content: []byte("from the image")}}},
		},
		Config: imgspec.ImageConfig{
			User: "web", Env: []string{"A=1", "PATH=/bin"}, Entrypoint: []string{"/app"}, Cmd: []string{"--go"}, WorkingDir: "/srv/app",
			Volumes: map[string]struct{}{"/vol": {}}, Labels: map[string]string{"l": "v"}, StopSignal: "SIGINT",
			ExposedPorts: map[string]struct{}{"80/tcp": {}},
		},
	}
}

// expectRefused checks an error of the service.
func expectRefused(g Gomega, err error, text string) {
	g.Expect(status.Code(err)).To(Equal(codes.Internal), "%v", err)
	g.Expect(status.Convert(err).Message()).To(HavePrefix("[CDH] [ERROR]:"))
	g.Expect(status.Convert(err).Message()).To(ContainSubstring(text))
}
