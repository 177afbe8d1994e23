package layerpull

import (
	"os"
	"path/filepath"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// trusting writes the CA of a registry, and a client certificate, into certs.d.
func (w *site) trusting(r *fakeregistry.Registry, ca, clients *fakeregistry.CA) {
	ca.WriteCertsD(w.t, w.path("certs.d"), r.Host(), clients, "node")
}

// certFile replaces a file of a registry's directory in certs.d; nil removes it.
func (w *site) certFile(r *fakeregistry.Registry, name string, content []byte) {
	g := NewWithT(w.t)
	path := filepath.Join(w.path("certs.d"), r.Host(), name)
	if content == nil {
		g.Expect(os.Remove(path)).To(Succeed())
		return
	}
	g.Expect(os.WriteFile(path, content, 0o600)).To(Succeed())
}

// transportComparisons: plain HTTP, TLS, whom certs.d trusts and what it shows.
func transportComparisons() []comparison {
	unavailable, internal := errdefs.RegistryUnavailable.String(), errdefs.Internal.String()
	tls := func(arrange func(w *site, r *fakeregistry.Registry, ca *fakeregistry.CA)) func(*site) string {
		return func(w *site) string {
			ca := fakeregistry.NewCA(w.t)
			r := w.registry("main", fakeregistry.Options{CA: ca})
			arrange(w, r, ca)
			return w.push(r, "app").Repository
		}
	}
	mutual := func(arrange func(w *site, r *fakeregistry.Registry, ca, clients *fakeregistry.CA)) func(*site) string {
		return func(w *site) string {
			ca, clients := fakeregistry.NewCA(w.t), fakeregistry.NewCA(w.t)
			r := w.registry("main", fakeregistry.Options{CA: ca, ClientCA: clients})
			arrange(w, r, ca, clients)
			return w.push(r, "app").Repository
		}
	}
	return []comparison{
		{name: "plain HTTP, not insecure", want: unavailable, arrange: func(w *site) string {
			return w.push(w.registry("main", fakeregistry.Options{}), "app").Repository
		}},
		{name: "plain HTTP, insecure", want: ok, from: "main", arrange: func(w *site) string {
			return w.push(w.open("main", fakeregistry.Options{}), "app").Repository
		}},
		{name: "insecure = false is the default", want: unavailable, arrange: func(w *site) string {
			r := w.registry("main", fakeregistry.Options{})
			w.conf("", r.Host(), "insecure = false")
			return w.push(r, "app").Repository
		}},
		{name: "CA in certs.d", want: ok, from: "main", arrange: tls(func(w *site, r *fakeregistry.Registry, ca *fakeregistry.CA) {
			w.trusting(r, ca, nil)
		})},
		{name: "no CA", want: unavailable, arrange: tls(func(*site, *fakeregistry.Registry, *fakeregistry.CA) {})},
		{name: "another CA", want: unavailable, arrange: tls(func(w *site, r *fakeregistry.Registry, _ *fakeregistry.CA) {
			w.trusting(r, fakeregistry.NewCA(w.t), nil)
		})},
		{name: "two CAs", want: ok, from: "main", arrange: tls(func(w *site, r *fakeregistry.Registry, ca *fakeregistry.CA) {
			w.trusting(r, fakeregistry.NewCA(w.t), nil)
			w.certFile(r, "second.crt", ca.PEM)
		})},
		{name: "CA of another name than .crt", want: unavailable, arrange: tls(func(w *site, r *fakeregistry.Registry, ca *fakeregistry.CA) {
			w.trusting(r, fakeregistry.NewCA(w.t), nil)
			w.certFile(r, "second.pem", ca.PEM)
		})},
		{name: "a CA that is none", want: unavailable, arrange: tls(func(w *site, r *fakeregistry.Registry, ca *fakeregistry.CA) {
			w.trusting(r, ca, nil)
			w.certFile(r, "ca.crt", []byte("no certificate"))
		})},
		{name: "insecure, TLS of an unknown CA", want: ok, from: "main", arrange: tls(func(w *site, r *fakeregistry.Registry, _ *fakeregistry.CA) {
			w.conf("", r.Host(), "insecure = true")
		})},
		{name: "client certificate", want: ok, from: "main", arrange: mutual(func(w *site, r *fakeregistry.Registry, ca, clients *fakeregistry.CA) {
			w.trusting(r, ca, clients)
		})},
		{name: "no client certificate", want: unavailable, arrange: mutual(func(w *site, r *fakeregistry.Registry, ca, _ *fakeregistry.CA) {
			w.trusting(r, ca, nil)
		})},
		{name: "client certificate of another CA", want: unavailable, arrange: mutual(func(w *site, r *fakeregistry.Registry, ca, _ *fakeregistry.CA) {
			w.trusting(r, ca, fakeregistry.NewCA(w.t))
		})},
		{name: "client certificate without its key", want: internal, arrange: mutual(func(w *site, r *fakeregistry.Registry, ca, clients *fakeregistry.CA) {
			w.trusting(r, ca, clients)
			w.certFile(r, "client.key", nil)
		})},
		{name: "client key without its certificate", want: internal, arrange: mutual(func(w *site, r *fakeregistry.Registry, ca, clients *fakeregistry.CA) {
			w.trusting(r, ca, clients)
			w.certFile(r, "client.cert", nil)
		})},
		{name: "client certificate and CA of the location", want: ok, from: "main", arrange: func(w *site) string {
			ca, clients := fakeregistry.NewCA(w.t), fakeregistry.NewCA(w.t)
			r := w.registry("main", fakeregistry.Options{CA: ca, ClientCA: clients})
			w.trusting(r, ca, clients)
			w.conf("named.test", r.Host())
			w.push(r, "app")
			return "named.test/app"
		}},
		{name: "mirrors whose certificates are wrong and right", want: ok, from: "right", arrange: func(w *site) string {
			ca := fakeregistry.NewCA(w.t)
			wrong, right := w.registry("wrong", fakeregistry.Options{CA: ca}), w.registry("right", fakeregistry.Options{CA: ca})
			w.trusting(right, ca, nil)
			w.push(wrong, "app")
			w.push(right, "app")
			w.conf("named.test", "127.0.0.1:1", "[[registry.mirror]]", `location = "`+wrong.Host()+`"`, "[[registry.mirror]]", `location = "`+right.Host()+`"`)
			return "named.test/app"
		}},
	}
}
