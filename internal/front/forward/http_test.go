package forward_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/front/forward"
)

// webClient is cAdvisor: HTTP/1 with kept-alive connections. dials counts them.
func webClient(t *testing.T, socket string) (client *http.Client, dials *atomic.Int64) {
	t.Helper()
	dials = new(atomic.Int64)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}, dials
}

// webCRIO serves HTTP on the socket of a CRI-O.
func webCRIO(t *testing.T, socket string, handler http.HandlerFunc) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	server := &http.Server{ReadTimeout: 5 * time.Second, Handler: handler}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return func() { _ = server.Close() }
}

type answer struct {
	code   int
	body   string
	header http.Header
}

func get(t *testing.T, client *http.Client, path string) answer {
	t.Helper()
	g := NewWithT(t)
	got, err := client.Get("http://crio" + path)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(got.Body.Close()).To(Succeed()) }()
	body, err := io.ReadAll(got.Body)
	g.Expect(err).NotTo(HaveOccurred())
	return answer{got.StatusCode, string(body), got.Header}
}

// TestHTTPKeepsAlive follows one connection of cAdvisor's through a CRI-O that is
// down, up, restarted and up again.
func TestHTTPKeepsAlive(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	client, dials := webClient(t, front(t, socket, forward.Options{}))
	down := func() {
		t.Helper()
		got := get(t, client, "/info")
		g.Expect(got.code).To(Equal(http.StatusServiceUnavailable))
		g.Expect(got.body).To(ContainSubstring("CRI-O does not answer on " + socket))
		g.Expect(got.header.Get("Retry-After")).To(Equal("1"))
	}
	down()
	hosts := make(chan string, 16)
	up := func() func() {
		t.Helper()
		stop := webCRIO(t, socket, func(w http.ResponseWriter, r *http.Request) {
			hosts <- r.Host
			w.Header().Set("Crio", "yes")
			_, _ = fmt.Fprint(w, "crio:", r.RequestURI)
		})
		for _, path := range []string{"/info", "/containers/a%2Fb?x=1", "/config"} {
			got := get(t, client, path)
			g.Expect(got.code).To(Equal(http.StatusOK))
			g.Expect(got.body).To(Equal("crio:" + path))
			g.Expect(got.header.Get("Crio")).To(Equal("yes"))
			g.Expect(<-hosts).To(Equal("crio"))
		}
		return stop
	}
	stop := up()
	stop()
	down()
	up()
	g.Expect(dials.Load()).To(BeEquivalentTo(1), "the client never had to connect again")
}

func TestEditHTTP(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	socket := filepath.Join(t.TempDir(), "crio.sock")
	webCRIO(t, socket, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/containers/gone":
			http.Error(w, `{"image":"crio"}`, http.StatusNotFound)
		case "/containers/limit":
			_, _ = io.WriteString(w, strings.Repeat("x", limit))
		case "/containers/long":
			_, _ = io.WriteString(w, strings.Repeat("x", limit+1))
		case "/containers/packed":
			w.Header().Set("Content-Encoding", "br")
			_, _ = io.WriteString(w, "x")
		default:
			_, _ = fmt.Fprintf(w, `{"image":"crio","encoding":%q}`, r.Header.Get("Accept-Encoding"))
		}
	})
	var edited atomic.Int64
	client, _ := webClient(t, front(t, socket, forward.Options{
		EditHTTP: func(_ context.Context, path string, body []byte) ([]byte, error) {
			edited.Add(1)
			if path == "/containers/unknown" {
				return nil, errors.New("the record is gone")
			}
			return []byte(path + " " + strings.ReplaceAll(string(body), "crio", "a longer name")), nil
		},
	}))
	for _, c := range []struct {
		path, says string
		code       int
		edited     int64
	}{
		{"/containers/abc", `/containers/abc {"image":"a longer name","encoding":""}`, http.StatusOK, 1},
		{"/containers/%61bc", `/containers/abc {"image":"a longer name","encoding":""}`, http.StatusOK, 1},
		{"/containers/limit", "/containers/limit xxx", http.StatusOK, 1},
		{"/containers/long", "more than 1048576 bytes", http.StatusBadGateway, 0},
		{"/containers/packed", "encoded as br", http.StatusBadGateway, 0},
		{"/containers/unknown", "the record is gone", http.StatusBadGateway, 1},
		{"/containers/gone", `{"image":"crio"}`, http.StatusNotFound, 0},
		{"/info", `{"image":"crio","encoding":"gzip"}`, http.StatusOK, 0},
	} {
		g := NewWithT(t)
		before := edited.Load()
		got := get(t, client, c.path)
		g.Expect(got.code).To(Equal(c.code), c.path)
		g.Expect(got.body).To(ContainSubstring(c.says), c.path)
		g.Expect(edited.Load()-before).To(Equal(c.edited), c.path)
	}
}

// TestHTTPStreams reads the start of an answer that has not ended: a CPU profile, a
// heap dump. It lasts longer than a request may take to be read.
func TestHTTPStreams(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	more, ended := make(chan string), make(chan struct{})
	webCRIO(t, socket, func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		for {
			select {
			case part := <-more:
				_, _ = io.WriteString(w, part)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	client, _ := webClient(t, front(t, socket, forward.Options{}))
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://crio/debug/heap", nil)
	g.Expect(err).NotTo(HaveOccurred())
	go func() { more <- "first\n" }()
	got, err := client.Do(request)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = got.Body.Close() }()
	lines := bufio.NewScanner(got.Body)
	g.Expect(lines.Scan()).To(BeTrue())
	g.Expect(lines.Text()).To(Equal("first"))
	g.Consistently(ended, "6s").ShouldNot(BeClosed())
	more <- "second\n"
	g.Expect(lines.Scan()).To(BeTrue())
	g.Expect(lines.Text()).To(Equal("second"))
	cancel()
	g.Eventually(ended, "10s").Should(BeClosed(), "CRI-O learns that the client has gone")
}

// TestHTTPHalfClose asks as socat does: it ends its half after the request. The
// client that is gone altogether is noticed all the same.
func TestHTTPHalfClose(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	asked, release, gone := make(chan struct{}, 2), make(chan struct{}), make(chan struct{}, 2)
	webCRIO(t, socket, func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
			_, _ = io.WriteString(w, "late")
		case <-r.Context().Done():
			gone <- struct{}{}
		}
	})
	own := front(t, socket, forward.Options{})
	ask := func() *net.UnixConn {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: own, Net: "unix"})
		g.Expect(err).NotTo(HaveOccurred())
		_, err = io.WriteString(conn, "GET /info HTTP/1.1\r\nHost: crio\r\nConnection: close\r\n\r\n")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(conn.CloseWrite()).To(Succeed())
		<-asked
		return conn
	}
	g.Expect(ask().Close()).To(Succeed())
	g.Eventually(gone, "10s").Should(Receive())
	conn := ask()
	defer func() { _ = conn.Close() }()
	g.Consistently(gone, "200ms").ShouldNot(Receive())
	close(release)
	answer, err := io.ReadAll(conn)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(answer)).To(And(HavePrefix("HTTP/1.1 200 OK"), HaveSuffix("late")))
}

func TestHTTPUpgrade(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	webCRIO(t, socket, func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw)
		_, _ = io.WriteString(conn, "bye\n")
	})
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: front(t, socket, forward.Options{}), Net: "unix"})
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "GET /future HTTP/1.1\r\nHost: crio\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	g.Expect(err).NotTo(HaveOccurred())
	r := bufio.NewReader(conn)
	got, err := http.ReadResponse(r, nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.StatusCode).To(Equal(http.StatusSwitchingProtocols))
	for _, say := range []string{"hello\n", "again\n"} {
		_, err = io.WriteString(conn, say)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.ReadString('\n')).To(Equal(say))
	}
	g.Expect(conn.CloseWrite()).To(Succeed())
	g.Expect(conn.SetReadDeadline(time.Now().Add(10 * time.Second))).To(Succeed())
	g.Expect(r.ReadString('\n')).To(Equal("bye\n"), "the end of one half is passed on")
}

// TestHTTPBounds sends what no client sends.
func TestHTTPBounds(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	socket := filepath.Join(t.TempDir(), "crio.sock")
	var asked atomic.Int64
	webCRIO(t, socket, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Huge", strings.Repeat("x", 128<<10))
	})
	own := front(t, socket, forward.Options{})
	client, _ := webClient(t, own)
	request, err := http.NewRequest(http.MethodGet, "http://crio/info", nil)
	g.Expect(err).NotTo(HaveOccurred())
	request.Header.Set("Huge", strings.Repeat("x", 128<<10))
	got, err := client.Do(request)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.Body.Close()).To(Succeed())
	g.Expect(got.StatusCode).To(Equal(http.StatusRequestHeaderFieldsTooLarge))
	g.Expect(asked.Load()).To(BeZero())
	g.Expect(get(t, client, "/info").code).To(Equal(http.StatusBadGateway), "an answer's header is bounded too")

	slow, err := net.Dial("unix", own)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = slow.Close() }()
	_, err = io.WriteString(slow, "GET /info HTTP/1.1\r\nHost:")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(slow.SetReadDeadline(time.Now().Add(20 * time.Second))).To(Succeed())
	_, err = io.ReadAll(slow)
	g.Expect(errors.Is(err, os.ErrDeadlineExceeded)).To(BeFalse(), "a request that never ends is given up")
}
