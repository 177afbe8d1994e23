package fakeregistry_test

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

func get(t *testing.T, url string, edit func(*http.Request)) (int, []byte, error) {
	t.Helper()
	// Long enough for a busy machine; what hangs is asked with a deadline of its own.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	return resp.StatusCode, body, err
}

func TestRecordsAndServes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{Layers: [][]byte{[]byte("one"), []byte("two")}})
	g.Expect(r.Requests()).To(BeEmpty(), "pushing is not recorded")

	base := "http://" + r.Host() + "/v2/team/app"
	code, body, err := get(t, base+"/manifests/v1", nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(code).To(Equal(http.StatusOK))
	g.Expect(body).To(Equal(p.Manifest))
	_, layer, err := get(t, base+"/blobs/"+p.Layers[1].String(), nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(layer)).To(Equal("two"))

	g.Expect(r.Paths()).To(Equal([]string{"GET /v2/team/app/manifests/v1", "GET /v2/team/app/blobs/" + p.Layers[1].String()}))
	g.Expect(r.Asked(p.Layers[1].String())).To(BeTrue())
	g.Expect(r.Asked(p.Layers[0].String())).To(BeFalse())
	g.Expect(r.Requests()[1]).To(And(HaveField("Status", 200), HaveField("Bytes", int64(3)), HaveField("Auth", false)))
	r.Forget()
	g.Expect(r.Requests()).To(BeEmpty())
}

func TestBasicAuth(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "u", Password: "p"})
	r.Push(t, "app", "v1", fakeregistry.Image{})
	url := "http://" + r.Host() + "/v2/app/manifests/v1"
	for _, c := range []struct {
		pass string
		want int
	}{{"", 401}, {"wrong", 401}, {"p", 200}} {
		code, _, err := get(t, url, func(q *http.Request) {
			if c.pass != "" {
				q.SetBasicAuth("u", c.pass)
			}
		})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(code).To(Equal(c.want))
	}
	g.Expect(r.Requests()[2].Auth).To(BeTrue())
}

func TestFaults(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	url := "http://" + r.Host() + "/v2/app/manifests/v1"
	for name, c := range map[string]struct {
		fault fakeregistry.Fault
		check func(code int, body []byte, err error)
	}{
		"status": {fakeregistry.Status(503, "later"), func(code int, _ []byte, _ error) { g.Expect(code).To(Equal(503)) }},
		"serve":  {fakeregistry.Serve("a/b", []byte("x")), func(_ int, b []byte, _ error) { g.Expect(string(b)).To(Equal("x")) }},
		"corrupt": {fakeregistry.Corrupt(), func(_ int, b []byte, _ error) {
			g.Expect(b).To(HaveLen(len(p.Manifest)))
			g.Expect(b).NotTo(Equal(p.Manifest))
		}},
		"shorten":  {fakeregistry.Shorten(2), func(_ int, b []byte, _ error) { g.Expect(b).To(Equal(p.Manifest[:len(p.Manifest)-2])) }},
		"lengthen": {fakeregistry.Lengthen(5), func(_ int, b []byte, _ error) { g.Expect(b).To(HaveLen(len(p.Manifest) + 5)) }},
		"endless":  {fakeregistry.Endless("a/b"), func(_ int, b []byte, _ error) { g.Expect(b).To(HaveLen(8 << 20)) }},
		"hang":     {fakeregistry.Hang(), func(_ int, _ []byte, err error) { g.Expect(err).To(MatchError(context.DeadlineExceeded)) }},
		"drop":     {fakeregistry.Drop(), func(_ int, _ []byte, err error) { g.Expect(err).To(HaveOccurred()) }},
	} {
		r.On(fakeregistry.Manifest("v1"), c.fault)
		code, body, err := get(t, url, func(q *http.Request) {
			if name == "hang" {
				ctx, cancel := context.WithTimeout(q.Context(), 100*time.Millisecond)
				t.Cleanup(cancel)
				*q = *q.WithContext(ctx)
			}
		})
		t.Log(name)
		c.check(code, body, err)
		r.Heal()
	}
	code, _, err := get(t, url, nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(code).To(Equal(200))
}
