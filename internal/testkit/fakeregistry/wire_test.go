package fakeregistry_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	ca, clients, stranger := fakeregistry.NewCA(t), fakeregistry.NewCA(t), fakeregistry.NewCA(t)
	r := fakeregistry.New(t, fakeregistry.Options{CA: ca, ClientCA: clients})
	r.Push(t, "app", "v1", fakeregistry.Image{})
	ask := func(trust *fakeregistry.CA, signer *fakeregistry.CA) (int, error) {
		config := &tls.Config{RootCAs: trust.Pool()}
		if signer != nil {
			pair, err := tls.X509KeyPair(signer.Client(t, "node-1"))
			g.Expect(err).NotTo(HaveOccurred())
			config.Certificates = []tls.Certificate{pair}
		}
		transport := &http.Transport{TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get(r.URL() + "/v2/app/manifests/v1")
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	g.Expect(ask(ca, clients)).To(Equal(200))
	g.Expect(r.Requests()[0].ClientCert).To(Equal("node-1"))
	for name, c := range map[string][2]*fakeregistry.CA{
		"no client certificate": {ca, nil}, "one of another CA": {ca, stranger}, "a CA that is not trusted": {stranger, clients},
	} {
		_, err := ask(c[0], c[1])
		g.Expect(err).To(HaveOccurred(), name)
	}
	g.Expect(r.Requests()).To(HaveLen(1))

	dir := t.TempDir()
	ca.WriteCertsD(t, dir, r.Host(), clients, "node-2")
	_, err := tls.LoadX509KeyPair(filepath.Join(dir, r.Host(), "client.cert"), filepath.Join(dir, r.Host(), "client.key"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadFile(filepath.Join(dir, r.Host(), "ca.crt"))).To(Equal(ca.PEM))
}

func TestConnectionsAreNumbered(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	for range 2 {
		client := &http.Client{Transport: &http.Transport{}}
		for range 2 {
			resp, err := client.Get(r.URL() + "/v2/?x=1")
			g.Expect(err).NotTo(HaveOccurred())
			_, err = io.Copy(io.Discard, resp.Body)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(resp.Body.Close()).To(Succeed())
		}
		client.CloseIdleConnections()
	}
	conns := []int{}
	for _, q := range r.Requests() {
		conns = append(conns, q.Conn)
		g.Expect(q.Query.Get("x")).To(Equal("1"))
		g.Expect(q.Host).To(Equal(r.Host()))
	}
	g.Expect(conns).To(Equal([]int{1, 1, 2, 2}))
	g.Expect(r.Connections()).To(Equal(2))
}

func TestMirrors(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for name, c := range map[string]struct {
		mirror func(string, string) string
		pushed string
		asked  string
		other  string
	}{
		"prefix": {fakeregistry.PathPrefix("cache/hub"), "team/app", "cache/hub/team/app/manifests/v1", "team/app/manifests/v1"},
		"ns":     {fakeregistry.NamespaceQuery, "hub.example/team/app", "team/app/manifests/v1?ns=hub.example", "team/app/manifests/v1"},
	} {
		r := fakeregistry.New(t, fakeregistry.Options{Mirror: c.mirror})
		p := r.Push(t, c.pushed, "v1", fakeregistry.Image{})
		code, body, err := get(t, r.URL()+"/v2/"+c.asked, nil)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(code).To(Equal(200), name)
		g.Expect(body).To(Equal(p.Manifest))
		code, _, err = get(t, r.URL()+"/v2/"+c.other, nil)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(code).To(Equal(404), name)
	}
}

func TestSignatureServers(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "u", Password: "p"})
	d := digest.FromString("x")
	r.PutSignatures("team/app", d, []byte("old"), []byte("old"))
	r.PutSignatures("team/app", d, []byte("one"))
	base := r.LookasideURL() + "/team/app@sha256=" + d.Encoded() + "/signature-"
	code, body, err := get(t, base+"1", nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(code).To(Equal(200), "lookaside storage asks for no credentials")
	g.Expect(string(body)).To(Equal("one"))
	code, _, err = get(t, base+"2", nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(code).To(Equal(404))

	r.Attach(t, "team/app", d, fakeregistry.Attachment{Payload: []byte("{}"), Annotations: map[string]string{"k": "v"}})
	code, body, err = get(t, r.URL()+"/v2/team/app/manifests/sha256-"+d.Encoded()+".sig", basic("u", "p"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(code).To(Equal(200))
	g.Expect(string(body)).To(ContainSubstring(fakeregistry.SigstoreMediaType))
	g.Expect(string(body)).To(ContainSubstring(`"annotations":{"k":"v"}`))
}

func TestWireFaults(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	url := r.URL() + "/v2/app/manifests/v1"
	for name, c := range map[string]struct {
		fault fakeregistry.Fault
		check func(resp *http.Response, body []byte, err error)
	}{
		"429": {fakeregistry.TooMany("3"), func(resp *http.Response, _ []byte, _ error) {
			g.Expect(resp.StatusCode).To(Equal(429))
			g.Expect(resp.Header.Get("Retry-After")).To(Equal("3"))
		}},
		"big": {fakeregistry.Big(403, "a/b", 1<<20), func(resp *http.Response, body []byte, err error) {
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(resp.StatusCode).To(Equal(403))
			g.Expect(body).To(HaveLen(1 << 20))
		}},
		"wrong type": {fakeregistry.Header("Content-Type", "a/b"), func(resp *http.Response, body []byte, _ error) {
			g.Expect(resp.Header.Get("Content-Type")).To(Equal("a/b"))
			g.Expect(body).To(Equal(p.Manifest))
		}},
		"wrong digest": {fakeregistry.Header("Docker-Content-Digest", "sha256:0"), func(resp *http.Response, _ []byte, _ error) {
			g.Expect(resp.Header.Get("Docker-Content-Digest")).To(Equal("sha256:0"))
		}},
		"wrong length": {fakeregistry.Header("Content-Length", "9999"), func(_ *http.Response, _ []byte, err error) {
			g.Expect(err).To(MatchError(io.ErrUnexpectedEOF))
		}},
		"redirect": {fakeregistry.Redirect("http://" + r.Host() + "/v2/other/../.."), func(resp *http.Response, _ []byte, _ error) {
			g.Expect(resp.StatusCode).To(Equal(307))
		}},
		"cut headers": {fakeregistry.CutHeaders(), func(_ *http.Response, _ []byte, err error) { g.Expect(err).To(HaveOccurred()) }},
		"cut body": {fakeregistry.CutBody(7), func(_ *http.Response, body []byte, err error) {
			g.Expect(err).To(MatchError(io.ErrUnexpectedEOF))
			g.Expect(body).To(Equal(p.Manifest[:7]))
		}},
		"drip": {fakeregistry.Drip(time.Microsecond), func(_ *http.Response, body []byte, err error) {
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(body).To(Equal(p.Manifest))
		}},
	} {
		r.On(fakeregistry.Manifest("v1"), c.fault)
		client := &http.Client{
			Transport:     &http.Transport{},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		resp, err := client.Get(url)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
			g.Expect(resp.Body.Close()).To(Succeed())
		}
		t.Log(name)
		c.check(resp, body, err)
		r.Heal()
	}
}

func TestFaultsThatEnd(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	r.Push(t, "app", "v1", fakeregistry.Image{})
	r.On(fakeregistry.Manifest(""), fakeregistry.Times(2, fakeregistry.Status(503, "")))
	codes := []int{}
	for range 4 {
		code, _, err := get(t, r.URL()+"/v2/app/manifests/v1", nil)
		g.Expect(err).NotTo(HaveOccurred())
		codes = append(codes, code)
	}
	g.Expect(codes).To(Equal([]int{503, 503, 200, 200}))

	gate := fakeregistry.NewGate()
	r.On(fakeregistry.Ping, gate.Fault())
	answered := make(chan int)
	go func() {
		code, _, _ := get(t, r.URL()+"/v2/", nil)
		answered <- code
	}()
	<-gate.Arrived()
	g.Expect(answered).NotTo(Receive())
	gate.Open()
	g.Expect(<-answered).To(Equal(200))
}

func TestFaultsServeEveryRequest(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	r.On(fakeregistry.Ping, fakeregistry.Big(200, "a/b", 100<<10))
	for range 2 {
		_, body, err := get(t, r.URL()+"/v2/", nil)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(body).To(HaveLen(100 << 10))
	}
}

func TestNothingWasAnswered(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	r.On(fakeregistry.Any, fakeregistry.Drop())
	_, _, err := get(t, r.URL()+"/v2/", nil)
	g.Expect(err).To(HaveOccurred())
	g.Expect(r.Requests()).NotTo(BeEmpty())
	for _, q := range r.Requests() {
		g.Expect(q.Status).To(BeZero())
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	g.Expect(err).NotTo(HaveOccurred())
	address := free.Addr().String()
	g.Expect(free.Close()).To(Succeed())
	g.Expect(fakeregistry.New(t, fakeregistry.Options{Listen: address}).Host()).To(Equal(address))
}
