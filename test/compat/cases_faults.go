package main

import (
	"net/http"
	"strings"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
)

// limit is the largest manifest that containers/image reads, and Husk.
const limit = 4 << 20

// faultCases: registries that lie, send elsewhere, or fail for a while.
func faultCases(w *world) []testCase {
	r := w.registry("faulty", fakeregistry.Options{Users: tenants(), Public: []string{"app", "signed"}})
	origin := w.registry("faulty-origin", fakeregistry.Options{})
	// To another host, a client does not carry its credentials along.
	cdn := w.registry("cdn", fakeregistry.Options{Listen: "127.0.0.1:0"})
	w.add(plain("", r.Host()), plain("faulty.test", origin.Host(), mirror{Location: r.Host(), Insecure: true}))
	p := w.push(r, "app", "v1", "faulty")
	w.push(origin, "app", "v1", "faulty's origin")
	w.push(r, "alice/app", "v1", "behind a CDN")
	w.push(cdn, "alice/app", "v1", "behind a CDN")
	signed := w.push(r, "signed", "v1", "its signature is not to be had")
	key := signing.NewSimple(w.tb)
	r.PutSignatures("signed", signed.Digest, key.Sign(w.tb, signing.Claim{Reference: signed.Reference, Digest: signed.Digest}))
	w.conf.registriesD["faulty"] = signing.RegistriesD(r.Host()+"/signed", r.LookasideURL(), false)
	w.conf.policy[r.Host()+"/signed"] = []signing.Requirement{key.Requirement(w.tb)}

	other := []byte(strings.Replace(string(p.Manifest), `"schemaVersion":2`, `"schemaVersion":2 `, 1))
	config := fakeregistry.Blob(p.ConfigDigest.String())
	// with serves one fault, from its beginning for each of the two.
	with := func(m fakeregistry.Match, fault func() fakeregistry.Fault) func() {
		return func() {
			r.Heal()
			r.On(m, fault())
		}
	}
	always := func(f fakeregistry.Fault) func() fakeregistry.Fault { return func() fakeregistry.Fault { return f } }
	once := func(f fakeregistry.Fault) func() fakeregistry.Fault {
		return func() fakeregistry.Fault { return fakeregistry.Times(1, f) }
	}
	const again = "CRI-O 1.34 leaves trying again to kubelet; Husk does so itself"
	app, pinned := pull{image: p.Reference}, pull{image: scope(p.Reference) + "@" + p.Digest.String()}
	manifest := fakeregistry.Manifest("v1")
	return []testCase{
		{Name: "another manifest than the digest says", pull: pinned, Want: classDigest, arm: with(fakeregistry.Manifest(""), always(fakeregistry.Serve(p.MediaType, other)))},
		{Name: "another config than the digest says", pull: app, Want: classDigest, arm: with(config, always(fakeregistry.Corrupt()))},
		{Name: "a manifest that is too large", pull: app, Want: classLarge, arm: with(manifest, always(fakeregistry.Big(http.StatusOK, p.MediaType, limit+1)))},
		{
			Name: "a manifest that the registry calls something else", pull: app, Want: classOther,
			Differs: &difference{Why: "CRI-O goes by the Content-Type; Husk by the body alone, which the digest covers", Want: classOK},
			arm:     with(manifest, always(fakeregistry.Header("Content-Type", "text/plain"))),
		},
		{
			Name: "config and layers are elsewhere", pull: pull{image: r.Host() + "/alice/app:v1", auth: login("alice", "alice-secret")},
			Want: classOK, User: "alice", Secret: "cdn", arm: with(fakeregistry.Blob(""), always(fakeregistry.Redirect(cdn.URL()))),
		},
		{Name: "a mirror that fails", pull: pull{image: "faulty.test/app:v1"}, Want: classOK, From: "faulty-origin", arm: with(fakeregistry.Any, always(fakeregistry.Status(http.StatusNotImplemented, "")))},
		{
			Name: "signatures that are not to be had", pull: pull{image: signed.Reference}, Want: classBroken,
			Differs: &difference{Why: again, Want: classBroken}, arm: with(fakeregistry.Lookaside, always(fakeregistry.Status(http.StatusInternalServerError, ""))),
		},
		{Name: "429 once", pull: app, Want: classOK, From: "faulty", arm: with(manifest, once(fakeregistry.TooMany("1")))},
		{Name: "503 once", pull: app, Want: classBroken, Differs: &difference{Why: again, Want: classOK}, arm: with(manifest, once(fakeregistry.Status(http.StatusServiceUnavailable, "")))},
		{Name: "the connection ends within the manifest, once", pull: app, Want: classBroken, Differs: &difference{Why: again, Want: classOK}, arm: with(manifest, once(fakeregistry.CutBody(10)))},
	}
}
