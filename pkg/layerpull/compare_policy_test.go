package layerpull

import (
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// signer signs in one way.
type signer struct {
	name string
	// sign puts a signature of c beside the image with a digest.
	sign func(r *fakeregistry.Registry, repository string, d digest.Digest, c signing.Claim)
	// require is what accepts it; other what accepts signatures of another key.
	require, other signing.Requirement
}

func compareSigners(t *testing.T) []signer {
	t.Helper()
	simple, key, keyless := signing.NewSimple(t), signing.NewSigstore(t), signing.NewKeyless(t)
	who := signing.Identity{Issuer: "https://issuer.test", Email: "builder@husk.test"}
	return []signer{
		{"signedBy", func(r *fakeregistry.Registry, repository string, d digest.Digest, c signing.Claim) {
			r.PutSignatures(repository, d, simple.Sign(t, c))
		}, simple.Requirement(t), signing.NewSimple(t).Requirement(t)},
		{"sigstoreSigned", func(r *fakeregistry.Registry, repository string, d digest.Digest, c signing.Claim) {
			r.Attach(t, repository, d, key.Sign(t, c))
		}, key.Requirement(t), signing.NewSigstore(t).Requirement(t)},
		{"fulcio", func(r *fakeregistry.Registry, repository string, d digest.Digest, c signing.Claim) {
			r.Attach(t, repository, d, keyless.Sign(t, who, c))
		}, keyless.Requirement(t, who), signing.NewKeyless(t).Requirement(t, who)},
	}
}

type scopes = map[string][]signing.Requirement

// policyComparisons: reject, accept and signatures, by scope.
func policyComparisons(t *testing.T) []comparison {
	refused := errdefs.PolicyRefused.String()
	accept, reject := []signing.Requirement{signing.Accept()}, []signing.Requirement{signing.Reject()}
	under := func(rules func(host string) scopes) func(*site) string {
		return func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			w.policy(rules(r.Host()))
			return w.push(r, "team/app").Repository
		}
	}
	cases := []comparison{
		{name: "reject", want: refused, arrange: under(func(string) scopes { return scopes{"": reject} })},
		{name: "accept", want: ok, from: "main", arrange: under(func(string) scopes { return scopes{"": accept} })},
		{name: "registry", want: ok, from: "main", arrange: under(func(h string) scopes { return scopes{"": reject, h: accept} })},
		{name: "namespace", want: refused, arrange: under(func(h string) scopes { return scopes{"": reject, h: accept, h + "/team": reject} })},
		{name: "repository", want: ok, from: "main", arrange: under(func(h string) scopes { return scopes{"": reject, h + "/team": reject, h + "/team/app": accept} })},
		{name: "neighbour", want: refused, arrange: under(func(h string) scopes { return scopes{"": reject, h + "/team/ap": accept, h + "/tea": accept} })},
		{name: "its tag", want: refused, arrange: under(func(h string) scopes { return scopes{"": reject, h + "/team/app:v1": accept} })},
		{name: "accept and reject", want: refused, arrange: under(func(string) scopes { return scopes{"": append(accept[:1:1], reject...)} })},
		{name: "of another transport", want: refused, arrange: func(w *site) string {
			image := under(func(string) scopes { return nil })(w)
			w.write("policy.json", `{"default":[{"type":"reject"}],"transports":{"atomic":{"":[{"type":"insecureAcceptAnything"}]}}}`)
			return image
		}},
		{name: "wildcard", want: ok, from: "main", arrange: named("*.wild.test", accept)},
		{name: "wildcard, another domain", want: refused, arrange: named("*.other.test", accept)},
		{name: "the name's, not the location's", want: refused, arrange: func(w *site) string {
			image := named("x.test", accept)(w)
			w.policy(scopes{"": reject, w.registries["main"].Host(): accept})
			return image
		}},
	}
	signers := compareSigners(t)
	cases = append(cases, placeComparisons(signers[0])...)
	for _, s := range signers {
		cases = append(cases, signerComparisons(s)...)
		cases = append(cases, identityComparisons(s)...)
	}
	return cases
}

// placeComparisons: where keys and signatures are.
func placeComparisons(s signer) []comparison {
	key := s.require["keyData"]
	with := func(requirement signing.Requirement, then func(w *site, r *fakeregistry.Registry)) func(*site) string {
		return func(w *site) string {
			image := signedImage(s, requirement, honest)(w)
			then(w, w.registries["main"])
			return image
		}
	}
	inFiles := func(name string, content any) func(*site) string {
		return with(s.require, func(w *site, _ *fakeregistry.Registry) {
			if data, ok := content.([]byte); ok {
				w.write("key", string(data))
			}
			w.policy(scopes{"": {{"type": "signedBy", "keyType": "GPGKeys", name: map[string]any{"keyPath": w.path("key"), "keyPaths": []string{w.path("key")}}[name]}}})
		})
	}
	return []comparison{
		{name: "keyPath", want: ok, from: "main", arrange: inFiles("keyPath", key)},
		{name: "keyPaths", want: ok, from: "main", arrange: inFiles("keyPaths", key)},
		{name: "keyPath is not there", want: errdefs.Internal.String(), arrange: inFiles("keyPath", nil)},
		{name: "keyPath is no key", want: errdefs.Internal.String(), arrange: inFiles("keyPath", []byte("no key"))},
		{name: "lookaside on another host", want: ok, from: "main", private: []string{"signatures"}, arrange: func(w *site) string {
			w.credentials = registryauth.Credentials{Username: "asked", Password: "asked-secret"}
			r, signatures := w.closed("main", false), w.registry("signatures", fakeregistry.Options{Users: users(), Listen: "127.0.0.2:0"})
			w.write("registries.d/main.yaml", string(signing.RegistriesD(r.Host(), signatures.LookasideURL(), false)))
			w.policy(scopes{"": {s.require}})
			p := w.push(r, "team/app")
			s.sign(signatures, "team/app", p.Digest, signing.Claim{Reference: p.Reference, Digest: p.Digest})
			return p.Repository
		}, user: "asked"},
		{name: "lookaside of the namespace", want: ok, from: "main", arrange: with(s.require, func(w *site, r *fakeregistry.Registry) {
			w.write("registries.d/all.yaml", string(signing.RegistriesD("", r.LookasideURL()+"/none", false)))
			w.write("registries.d/main.yaml", string(signing.RegistriesD(r.Host(), r.LookasideURL()+"/none", false)))
			w.write("registries.d/team.yaml", string(signing.RegistriesD(r.Host()+"/team", r.LookasideURL(), false)))
		})},
		{name: "lookaside in two files", want: errdefs.Internal.String(), arrange: with(s.require, func(w *site, r *fakeregistry.Registry) {
			w.write("registries.d/other.yaml", string(signing.RegistriesD(r.Host(), r.LookasideURL(), false)))
		})},
	}
}

// named is an image that is pulled by a name below wild.test, under one scope.
func named(scope string, requirements []signing.Requirement) func(*site) string {
	return func(w *site) string {
		r := w.registry("main", fakeregistry.Options{})
		w.conf("*.wild.test", r.Host(), insecureLine)
		w.policy(scopes{"": {signing.Reject()}, scope: requirements})
		w.push(r, "team/app")
		return "a.wild.test/team/app"
	}
}

// signedImage is a signed image, in a registry that has its signatures as well. claim
// changes what is signed.
func signedImage(s signer, requirement signing.Requirement, claim func(c signing.Claim) signing.Claim) func(*site) string {
	return func(w *site) string {
		r := w.open("main", fakeregistry.Options{})
		w.write("registries.d/main.yaml", string(signing.RegistriesD(r.Host(), r.LookasideURL(), true)))
		w.policy(scopes{"": {signing.Reject()}, r.Host(): {requirement}})
		p := w.push(r, "team/app")
		if claim != nil {
			s.sign(r, "team/app", p.Digest, claim(signing.Claim{Reference: p.Reference, Digest: p.Digest}))
		}
		return p.Repository
	}
}

func honest(c signing.Claim) signing.Claim { return c }

// signerComparisons: who signed, and where the signature is.
func signerComparisons(s signer) []comparison {
	refused := errdefs.PolicyRefused.String()
	both := func(w *site, arrange func(*site) string, then func(r *fakeregistry.Registry)) string {
		image := arrange(w)
		then(w.registries["main"])
		return image
	}
	return []comparison{
		{name: s.name, want: ok, from: "main", arrange: signedImage(s, s.require, honest)},
		{name: s.name + ", none", want: refused, arrange: signedImage(s, s.require, nil)},
		{name: s.name + ", another key", want: refused, arrange: signedImage(s, s.other, honest)},
		{name: s.name + ", another digest", want: refused, arrange: signedImage(s, s.require, func(c signing.Claim) signing.Claim {
			c.Digest = digest.FromString("another")
			return c
		})},
		{name: s.name + ", registries.d has no place for it", want: refused, arrange: func(w *site) string {
			image := signedImage(s, s.require, honest)(w)
			r := w.registries["main"]
			w.write("registries.d/main.yaml", string(signing.RegistriesD(r.Host(), r.LookasideURL()+"/none", false)))
			return image
		}},
		{name: s.name + ", signatures of the whole registry", want: ok, from: "main", arrange: func(w *site) string {
			image := signedImage(s, s.require, honest)(w)
			w.write("registries.d/main.yaml", string(signing.RegistriesD("", w.registries["main"].LookasideURL(), true)))
			return image
		}},
		{name: s.name + ", and accept", want: ok, from: "main", arrange: func(w *site) string {
			image := signedImage(s, s.require, honest)(w)
			w.policy(scopes{"": {signing.Accept(), s.require}})
			return image
		}},
		{name: s.name + ", and another", want: refused, arrange: func(w *site) string {
			image := signedImage(s, s.require, honest)(w)
			w.policy(scopes{"": {s.require, s.other}})
			return image
		}},
		{name: s.name + ", cannot be read", want: errdefs.RegistryUnavailable.String(), arrange: func(w *site) string {
			return both(w, signedImage(s, s.require, honest), func(r *fakeregistry.Registry) {
				r.On(fakeregistry.Lookaside, fakeregistry.Status(500, ""))
				r.On(fakeregistry.Manifest(fakeregistry.AttachmentTag(w.pushed.Digest)), fakeregistry.Status(500, ""))
			})
		}},
		{name: s.name + ", only the index is signed", want: refused, arrange: signedIndex(s, false)},
		{name: s.name + ", the instance is signed", want: ok, from: "main", arrange: signedIndex(s, true)},
	}
}

// signedIndex is an index of which it, or its instance, is signed.
func signedIndex(s signer, instance bool) func(*site) string {
	return func(w *site) string {
		image := signedImage(s, s.require, nil)(w)
		r, p := w.registries["main"], w.pushed
		w.pushed = r.PushIndex(w.t, "team/app", "v1", p.Entry("linux", runtime.GOARCH, ""))
		d := w.pushed.Digest
		if instance {
			d = p.Digest
		}
		s.sign(r, "team/app", d, signing.Claim{Reference: w.pushed.Reference, Digest: d})
		return image
	}
}

// identityComparisons: for which names a signature is good.
func identityComparisons(s signer) []comparison {
	refused := errdefs.PolicyRefused.String()
	as := func(identity map[string]string, claim func(c signing.Claim) signing.Claim) func(*site) string {
		return signedImage(s, s.require.WithIdentity(identity), claim)
	}
	name := func(reference string) func(signing.Claim) signing.Claim {
		return func(c signing.Claim) signing.Claim {
			c.Reference = reference
			return c
		}
	}
	kind := func(k string) map[string]string { return map[string]string{"type": k} }
	repository := map[string]string{"type": "exactRepository", "dockerRepository": "signed.test/app"}
	reference := map[string]string{"type": "exactReference", "dockerReference": "signed.test/app:v1"}
	remapped := func(w *site) string {
		image := signedImage(s, s.require, name("signed.test/team/app:v1"))(w)
		host := w.registries["main"].Host()
		w.policy(scopes{"": {s.require.WithIdentity(map[string]string{"type": "remapIdentity", "prefix": host, "signedPrefix": "signed.test"})}})
		return image
	}
	return []comparison{
		{name: s.name + ", matchRepository", want: ok, arrange: as(kind("matchRepository"), honest)},
		{name: s.name + ", matchRepository, another", want: refused, arrange: as(kind("matchRepository"), name("signed.test/app:v1"))},
		{name: s.name + ", matchRepoDigestOrExact", want: ok, arrange: as(kind("matchRepoDigestOrExact"), honest)},
		{name: s.name + ", matchExact, of a tag", want: refused, arrange: as(kind("matchExact"), honest)},
		{name: s.name + ", exactRepository", want: ok, arrange: as(repository, name("signed.test/app:v9"))},
		{name: s.name + ", exactRepository, another", want: refused, arrange: as(repository, honest)},
		{name: s.name + ", exactReference", want: ok, arrange: as(reference, name("signed.test/app:v1"))},
		{name: s.name + ", exactReference, another tag", want: refused, arrange: as(reference, name("signed.test/app:v2"))},
		{name: s.name + ", remapIdentity", want: ok, arrange: remapped},
	}
}
