package main

import (
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// transportCases: plain HTTP, TLS, whom the node trusts and what it shows.
func transportCases(w *world) []testCase {
	ca, clients, stranger := fakeregistry.NewCA(w.tb), fakeregistry.NewCA(w.tb), fakeregistry.NewCA(w.tb)
	serve := func(name string, opts fakeregistry.Options) *fakeregistry.Registry {
		r := w.registry(name, opts)
		w.push(r, "app", "v1", name)
		return r
	}
	trust := func(r *fakeregistry.Registry, ca, clients *fakeregistry.CA) {
		w.conf.certs = append(w.conf.certs, func(dir string) { ca.WriteCertsD(w.tb, dir, r.Host(), clients, "node") })
	}
	trusted := serve("tls", fakeregistry.Options{CA: ca})
	trust(trusted, ca, nil)
	untrusted := serve("tls-untrusted", fakeregistry.Options{CA: ca})
	wrong := serve("tls-wrong", fakeregistry.Options{CA: ca})
	trust(wrong, stranger, nil)
	mutual := serve("mtls", fakeregistry.Options{CA: ca, ClientCA: clients})
	trust(mutual, ca, clients)
	nameless := serve("mtls-nameless", fakeregistry.Options{CA: ca, ClientCA: clients})
	trust(nameless, ca, nil)
	forged := serve("mtls-forged", fakeregistry.Options{CA: ca, ClientCA: clients})
	trust(forged, ca, stranger)
	unverified := serve("tls-unverified", fakeregistry.Options{CA: ca})
	w.add(entry{Location: unverified.Host(), Insecure: true})
	open := serve("http", fakeregistry.Options{})
	w.add(entry{Location: open.Host(), Insecure: true})
	secure := serve("http-secure", fakeregistry.Options{})
	listed := serve("http-listed", fakeregistry.Options{})
	listedTLS := serve("tls-listed", fakeregistry.Options{CA: ca})
	w.conf.insecure = []string{listed.Host(), listedTLS.Host()}
	loopback := serve("loopback", fakeregistry.Options{Listen: "127.0.0.1:0"})
	w.add(entry{Prefix: "tls-mirror.test", Location: wrong.Host(), Mirrors: []mirror{{Location: untrusted.Host()}, {Location: trusted.Host()}}})

	image := func(r *fakeregistry.Registry) pull { return pull{image: r.Host() + "/app:v1"} }
	return []testCase{
		{Name: "CA in certs.d", pull: image(trusted), Want: classOK, From: "tls"},
		{Name: "CA that is not there", pull: image(untrusted), Want: classTLS},
		{Name: "another CA in certs.d", pull: image(wrong), Want: classTLS},
		{Name: "client certificate", pull: image(mutual), Want: classOK, From: "mtls", User: "cert:node"},
		{Name: "no client certificate", pull: image(nameless), Want: classTLS},
		{Name: "client certificate of another CA", pull: image(forged), Want: classTLS},
		{Name: "insecure, with TLS", pull: image(unverified), Want: classOK, From: "tls-unverified"},
		{Name: "insecure, plain HTTP", pull: image(open), Want: classOK, From: "http"},
		{Name: "not insecure, plain HTTP", pull: image(secure), Want: classTLS},
		{Name: "insecure_registries of crio.conf, plain HTTP", pull: image(listed), Want: classOK, From: "http-listed"},
		{Name: "insecure_registries of crio.conf, TLS", pull: image(listedTLS), Want: classOK, From: "tls-listed"},
		{Name: "loopback, plain HTTP", pull: image(loopback), Want: classOK, From: "loopback"},
		{Name: "mirrors whose certificates are wrong and right", pull: pull{image: "tls-mirror.test/app:v1"}, Want: classOK, From: "tls"},
	}
}
