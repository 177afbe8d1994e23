package metrics_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/metrics"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// socketPath is short: the path of a socket has at most 107 bytes.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "husk")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { NewWithT(t).Expect(os.RemoveAll(dir)).To(Succeed()) })
	return filepath.Join(dir, "run", "metrics.sock")
}

func client(network, address string) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
}

// get returns status and body; a failure to connect is status 0.
func get(c *http.Client, path string) (int, string) {
	answer, err := c.Get("http://husk" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(body)
}

func status(c *http.Client, path string) func() int {
	return func() int { code, _ := get(c, path); return code }
}

// serve starts a server and returns how to stop it and wait for it.
func serve(t *testing.T, m *metrics.Metrics, addr string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, addr) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		NewWithT(t).Eventually(done, "20s").Should(Receive(Succeed()))
	}
	t.Cleanup(stop)
	return stop
}

func TestServeOnASocket(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := socketPath(t)
	m := metrics.New(options())
	stop := serve(t, m, "unix://"+path)
	c := client("unix", path)
	g.Eventually(status(c, "/healthz"), "10s").Should(Equal(http.StatusOK))
	info, err := os.Stat(path)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(BeEquivalentTo(0o660))
	code, body := get(c, "/metrics")
	g.Expect(code).To(Equal(http.StatusOK))
	g.Expect(body).To(And(ContainSubstring("\nhusk_records 2\n"), ContainSubstring(`husk_build_info{version="1.2.3"} 1`)))
	g.Expect(status(c, "/other")()).To(Equal(http.StatusNotFound))
	answer, err := c.Post("http://husk/metrics", "text/plain", strings.NewReader("x"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(answer.Body.Close()).To(Succeed())
	g.Expect(answer.StatusCode).To(Equal(http.StatusMethodNotAllowed))
	stop()
	_, err = net.Dial("unix", path)
	g.Expect(err).To(MatchError(syscall.ECONNREFUSED))
}

// TestServeTakesOver replaces a stale socket, and one that is served: the husk
// that goes does not take the socket of the one that came along.
func TestServeTakesOver(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := socketPath(t)
	g.Expect(os.MkdirAll(filepath.Dir(path), 0o755)).To(Succeed())
	stale, err := net.Listen("unix", path)
	g.Expect(err).NotTo(HaveOccurred())
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	g.Expect(stale.Close()).To(Succeed())

	c := client("unix", path)
	page := func() string { _, body := get(c, "/metrics"); return body }
	old := options()
	old.Version = "old"
	stopOld := serve(t, metrics.New(old), "unix://"+path)
	g.Eventually(page, "10s").Should(ContainSubstring(`version="old"`))
	stopNew := serve(t, metrics.New(options()), "unix://"+path)
	g.Eventually(page, "10s").Should(ContainSubstring(`version="1.2.3"`))
	stopOld()
	g.Expect(status(c, "/healthz")()).To(Equal(http.StatusOK))
	stopNew()
}

// lines receives each log line.
type lines chan string

func (l lines) Write(p []byte) (int, error) { l <- string(p); return len(p), nil }

func TestServeOnLoopback(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	held, err := net.Listen("tcp", "127.0.0.1:0")
	g.Expect(err).NotTo(HaveOccurred())
	addr := held.Addr().String()
	logged := make(lines, 16)
	o := options()
	o.Log = slog.New(slog.NewTextHandler(logged, nil))
	serve(t, metrics.New(o), addr)
	g.Eventually(logged, "10s").Should(Receive(ContainSubstring("waiting for it")))
	g.Expect(held.Close()).To(Succeed()) // as the husk before this one does, in time
	g.Eventually(status(client("tcp", addr), "/metrics"), "20s").Should(Equal(http.StatusOK))
}

func TestServeRefuses(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{
		"", "unix://", "unix://relative.sock", "unix:///", "unix:///dir/", "/run/husk.sock", "tcp://127.0.0.1:1",
		"0.0.0.0:9090", ":9090", "[::]:9090", "10.0.0.1:9090", "192.168.1.1:9090", "localhost:9090", "127.0.0.1",
		"127.0.0.1:", "127.0.0.1:0", "unix:///" + strings.Repeat("a", 103), "127.0.0.1:99999", "[::ffff:10.0.0.1]:1", "169.254.1.1:9", "127.1:80",
	} {
		g := NewWithT(t)
		g.Expect(errdefs.Is(metrics.CheckAddress(addr), errdefs.InvalidArgument)).To(BeTrue(), addr)
		g.Expect(errdefs.Is(metrics.New(options()).Serve(t.Context(), addr), errdefs.InvalidArgument)).To(BeTrue(), addr)
	}
	for _, addr := range []string{"unix:///run/husk/metrics.sock", "unix:///" + strings.Repeat("a", 102), "127.0.0.1:9537", "[::1]:9537", "127.9.9.9:1"} {
		NewWithT(t).Expect(metrics.CheckAddress(addr)).To(Succeed(), addr)
	}
}

func TestServeReplacesNothingButSockets(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"metrics.sock", "metrics.sock.new"} {
		g := NewWithT(t)
		path := socketPath(t)
		g.Expect(os.MkdirAll(filepath.Dir(path), 0o755)).To(Succeed())
		precious := filepath.Join(filepath.Dir(path), name)
		g.Expect(os.WriteFile(precious, []byte("precious"), 0o600)).To(Succeed())
		err := metrics.New(options()).Serve(t.Context(), "unix://"+path)
		g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
		g.Expect(os.ReadFile(precious)).To(BeEquivalentTo("precious"))
	}
}

// TestSlowClientsDoNotStopTheStop opens every connection the server allows and
// says nothing on them.
func TestSlowClientsDoNotStopTheStop(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := socketPath(t)
	stop := serve(t, metrics.New(options()), "unix://"+path)
	g.Eventually(status(client("unix", path), "/healthz"), "10s").Should(Equal(http.StatusOK))
	for range 32 {
		conn, err := net.Dial("unix", path)
		g.Expect(err).NotTo(HaveOccurred())
		t.Cleanup(func() { _ = conn.Close() })
		_, err = conn.Write([]byte("GET /metrics HTTP/1.1\r\n"))
		g.Expect(err).NotTo(HaveOccurred())
	}
	// They are cut off after the read timeout, and then there is room again.
	g.Eventually(status(client("unix", path), "/healthz"), "30s").Should(Equal(http.StatusOK))
	stop()
}
