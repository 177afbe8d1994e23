package front_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/manifestonly"
)

// observer notes what it is told.
type observer struct {
	mu        sync.Mutex
	pulled    []string
	results   []manifestonly.Result
	forwarded map[string]int
	under     int
	layers    int
}

func (o *observer) PullStarted() func() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.under++
	return func() { o.mu.Lock(); defer o.mu.Unlock(); o.under-- }
}

func (o *observer) Pulled(handler, outcome string, took time.Duration, result manifestonly.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if took <= 0 {
		outcome += " in no time"
	}
	o.pulled = append(o.pulled, handler+" "+outcome)
	o.results = append(o.results, result)
}

func (o *observer) LayersStarted() func() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.layers++
	return func() { o.mu.Lock(); defer o.mu.Unlock(); o.layers-- }
}

func (o *observer) LayersPulled(handler, outcome string, took time.Duration, bytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if took <= 0 {
		outcome += " in no time"
	}
	o.pulled = append(o.pulled, fmt.Sprint("layers ", handler, " ", outcome, " ", bytes))
}

func (o *observer) Forwarded(method string, code codes.Code) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.forwarded == nil {
		o.forwarded = map[string]int{}
	}
	o.forwarded[method[strings.LastIndex(method, "/")+1:]+" "+code.String()]++
}

func TestObserver(t *testing.T) {
	t.Parallel()
	o := new(observer)
	n := newNode(t, front.Config{}, func(c *front.Collaborators) { c.Observer = o })
	n.registry.publish(appImage, "web", "")
	pull := func(name, handler string) {
		_, _ = n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name, RuntimeHandler: handler}})
	}
	pull(appImage, "husk")
	pull("registry.local/none:1", "kata")
	pull(appImage, "runc")
	_, _ = n.Version(t.Context(), new(cri.VersionRequest))
	_, _ = n.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "none"})
	_, _ = n.ListContainers(t.Context(), new(cri.ListContainersRequest))
	n.Expect(n.conn.Invoke(t.Context(), "/future.v9.Service/Do", new(cri.VersionRequest), new(cri.VersionResponse))).NotTo(Succeed())
	n.status(t, &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"}) // answered by husk alone
	events, err := n.GetContainerEvents(t.Context(), new(cri.GetEventsRequest))
	n.Expect(err).NotTo(HaveOccurred())
	for err == nil {
		_, err = events.Recv()
	}
	n.Eventually(func() map[string]int { o.mu.Lock(); defer o.mu.Unlock(); return o.forwarded }).Should(HaveKey("GetContainerEvents OK"))
	o.mu.Lock()
	defer o.mu.Unlock()
	n.Expect(o.pulled).To(Equal([]string{"husk ok", "kata registry-unavailable"}))
	n.Expect(o.results[0].Record.LayerBytes).To(Equal(int64(1 << 20)))
	n.Expect(o.results[1]).To(Equal(manifestonly.Result{}))
	n.Expect(o.under).To(BeZero())
	n.Expect(o.forwarded).To(Equal(map[string]int{
		"PullImage OK": 1, "Version OK": 1, "ContainerStatus NotFound": 1, "ListContainers OK": 1, "Do Unimplemented": 1, "GetContainerEvents OK": 1,
	}))
}

// tracer gives each call the traceparent of its span.
type tracer struct {
	mu    sync.Mutex
	ended []string
}

type traced struct {
	grpc.ServerStream
	context func() context.Context
}

func (s traced) Context() context.Context { return s.context() }

func (r *tracer) Trace(stream grpc.ServerStream, method string) (grpc.ServerStream, func(error)) {
	md, _ := metadata.FromIncomingContext(stream.Context())
	md = md.Copy()
	md.Set("traceparent", "of the span")
	ctx := metadata.NewIncomingContext(stream.Context(), md)
	return traced{stream, func() context.Context { return ctx }}, func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = append(r.ended, method[strings.LastIndex(method, "/")+1:]+" "+status.Code(err).String())
	}
}

func TestTracer(t *testing.T) {
	t.Parallel()
	r := new(tracer)
	n := newNode(t, front.Config{}, func(c *front.Collaborators) { c.Tracer = r })
	n.registry.publish(appImage, "web", "")
	_, config := n.sandbox("pod", "husk")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "of the client")
	_, err := n.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage}, SandboxConfig: config})
	n.Expect(err).NotTo(HaveOccurred())
	_, err = n.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: "none"})
	n.Expect(err).To(HaveOccurred())
	_, err = n.Version(ctx, new(cri.VersionRequest)) // CRI-O's alone
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(r.ended).To(Equal([]string{"PullImage OK", "ContainerStatus NotFound"}))
	// The front's own questions, and the calls it passes on, belong to the span.
	n.Expect(n.crio.parents["PodSandboxStatus"]).To(Equal("of the span"))
	n.Expect(n.crio.parents["ContainerStatus"]).To(Equal("of the span"))
	n.Expect(n.crio.parents["Version"]).To(Equal("of the client"))
}

// lines are the log lines that were written as JSON.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// of returns the lines of a method.
func (l *lines) of(t *testing.T, method string) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []map[string]any
	for line := range strings.Lines(l.text.String()) {
		entry := map[string]any{}
		NewWithT(t).Expect(json.Unmarshal([]byte(line), &entry)).To(Succeed())
		if name, _ := entry["method"].(string); strings.HasSuffix(name, "/"+method) {
			found = append(found, entry)
		}
	}
	return found
}

func TestLogs(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-v4lue"
	out := new(lines)
	n := newNode(t, front.Config{}, func(c *front.Collaborators) {
		c.Log = slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	rec := n.registry.publish(appImage, "web", "").Record()
	sandbox, config := n.sandbox("pod", "husk")
	config.Annotations["example.com/token"] = secret
	auth := &cri.AuthConfig{Username: "alice", Password: secret, Auth: secret, IdentityToken: secret, RegistryToken: secret}
	pull := func(name string) {
		_, _ = n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name, Annotations: config.Annotations}, Auth: auth, SandboxConfig: config})
	}
	pull(appImage)
	pull("registry.local/none:1")
	pull("https://alice:" + secret + "@registry.local/none:1")
	pull("registry.local/" + strings.Repeat("x", 1<<20))
	_, err := n.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: sandbox, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "app"}, Image: &cri.ImageSpec{Image: rec.ImageID().String(), UserSpecifiedImage: appImage},
		Envs:        []*cri.KeyValue{{Key: "TOKEN", Value: []byte(secret)}},
		Annotations: map[string]string{"example.com/token": secret}, Command: []string{"run", secret},
	}})
	n.Expect(err).NotTo(HaveOccurred())
	_, _ = n.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "none"})
	_, _ = n.Version(t.Context(), new(cri.VersionRequest))

	n.Eventually(func() int { return len(out.of(t, "Version")) }).Should(Equal(1))
	pulls := out.of(t, "PullImage")
	n.Expect(pulls).To(HaveLen(4))
	n.Expect(pulls[0]).To(And(
		HaveKeyWithValue("level", "INFO"), HaveKeyWithValue("namespace", "default"), HaveKeyWithValue("pod", "pod"),
		HaveKeyWithValue("image", appImage), HaveKeyWithValue("handler", "husk"), HaveKey("took"),
		HaveKeyWithValue("image_id", rec.ImageID().String()), Not(HaveKey("error")),
	))
	for _, failed := range pulls[1:] {
		n.Expect(failed).To(And(HaveKeyWithValue("level", "WARN"), HaveKey("kind"), HaveKey("error"), HaveKey("took")))
	}
	n.Expect(pulls[1]).To(HaveKeyWithValue("kind", "registry-unavailable"))
	created := out.of(t, "CreateContainer")
	n.Expect(created).To(HaveLen(1))
	n.Expect(created[0]).To(And(HaveKeyWithValue("level", "INFO"), HaveKeyWithValue("container", "app"), HaveKeyWithValue("pod", "pod"),
		HaveKeyWithValue("image", appImage), HaveKeyWithValue("handler", "husk"), HaveKeyWithValue("sandbox", sandbox)))
	// What CRI-O answers to questions, and what is passed on, is not worth a line by default.
	n.Expect(out.of(t, "ContainerStatus")[0]).To(And(HaveKeyWithValue("level", "DEBUG"), HaveKeyWithValue("kind", "not-found")))
	n.Expect(out.of(t, "Version")[0]).To(HaveKeyWithValue("level", "DEBUG"))

	out.mu.Lock()
	defer out.mu.Unlock()
	n.Expect(out.text.String()).NotTo(ContainSubstring(secret))
	n.Expect(out.text.Len()).To(BeNumerically("<", 16<<10), "a name of a megabyte is not repeated")
}

// TestHTTPReportsTheTrueImage: what cAdvisor reads.
func TestHTTPReportsTheTrueImage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	listener, err := net.Listen("unix", socket)
	g.Expect(err).NotTo(HaveOccurred())
	const info = `{"image":"","image_ref":"%REF%","annotations":{"husk.dev/record-id":"%ID%","husk.dev/image-id":"i","husk.dev/image-ref":"repo@digest","husk.dev/user-image":"repo:1"}}`
	ordinary := strings.NewReplacer("%REF%", hexID('2'), "%ID%", hexID('1')).Replace(info)
	guest := strings.NewReplacer("%REF%", hexID('1'), "%ID%", hexID('1')).Replace(info)
	crio := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := guest
		if r.URL.Path == "/containers/ordinary" {
			answer = ordinary
		}
		_, _ = w.Write([]byte(answer))
	})}
	go func() { _ = crio.Serve(listener) }()
	t.Cleanup(func() { _ = crio.Close() })
	server, err := front.New(front.Config{Backend: socket, Handlers: fakeHandlers{}}, front.Collaborators{Log: slog.New(slog.DiscardHandler)})
	g.Expect(err).NotTo(HaveOccurred())
	own := filepath.Join(t.TempDir(), "front.sock")
	ownListener, err := net.Listen("unix", own)
	g.Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, ownListener) }()
	t.Cleanup(func() { cancel(); g.Expect(<-done).To(Succeed()); g.Expect(server.Close()).To(Succeed()) })
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", own)
	}}}
	defer client.CloseIdleConnections()
	for path, image := range map[string]string{"/containers/guest": "repo:1", "/containers/ordinary": "", "/info": ""} {
		answer, err := client.Get("http://crio" + path)
		g.Expect(err).NotTo(HaveOccurred())
		var got struct{ Image string }
		g.Expect(json.NewDecoder(answer.Body).Decode(&got)).To(Succeed())
		g.Expect(answer.Body.Close()).To(Succeed())
		g.Expect(got.Image).To(Equal(image), path)
	}
}
