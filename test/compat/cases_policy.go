package main

import (
	"runtime"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
)

// signer signs in one way, with the right key or with another.
type signer struct {
	name        string
	sign        func(c signing.Claim, right bool, repository string)
	requirement signing.Requirement
}

func signers(w *world, r *fakeregistry.Registry) []signer {
	simple, otherSimple := signing.NewSimple(w.tb), signing.NewSimple(w.tb)
	key, otherKey := signing.NewSigstore(w.tb), signing.NewSigstore(w.tb)
	keyless, otherKeyless := signing.NewKeyless(w.tb), signing.NewKeyless(w.tb)
	who := signing.Identity{Issuer: "https://issuer.test", Email: "builder@husk.test"}
	return []signer{
		{"simple signing", func(c signing.Claim, right bool, repository string) {
			s := map[bool]*signing.Simple{true: simple, false: otherSimple}[right]
			r.PutSignatures(repository, c.Digest, s.Sign(w.tb, c))
		}, simple.Requirement(w.tb)},
		{"sigstore key", func(c signing.Claim, right bool, repository string) {
			s := map[bool]*signing.Sigstore{true: key, false: otherKey}[right]
			r.Attach(w.tb, repository, c.Digest, s.Sign(w.tb, c))
		}, key.Requirement(w.tb)},
		{"fulcio and rekor", func(c signing.Claim, right bool, repository string) {
			s := map[bool]*signing.Keyless{true: keyless, false: otherKeyless}[right]
			r.Attach(w.tb, repository, c.Digest, s.Sign(w.tb, who, c))
		}, keyless.Requirement(w.tb, who)},
	}
}

// policyCases: reject, accept and signatures; of the node and of a namespace.
func policyCases(w *world) []testCase {
	r := w.registry("signed", fakeregistry.Options{})
	w.add(plain("", r.Host()), plain("signed-mirror.test", "nowhere.test", mirror{Location: r.Host(), Insecure: true}))
	w.conf.registriesD["signed"] = signing.RegistriesD(r.Host(), r.LookasideURL(), true)
	w.push(r, "rejected/app", "v1", "rejected")
	w.push(r, "free/app", "v1", "free")
	w.conf.policy[r.Host()+"/rejected"] = []signing.Requirement{signing.Reject()}
	w.conf.namespaces["locked"] = signing.Policy(nil)
	w.conf.namespaces["trusting"] = signing.Policy(map[string][]signing.Requirement{"": {signing.Accept()}})
	w.conf.namespaces["broken"] = []byte("{")
	cases := []testCase{
		{Name: "rejected by the node", pull: pull{image: r.Host() + "/rejected/app:v1"}, Want: classPolicy},
		{Name: "rejected by the node, accepted by the namespace", pull: pull{image: r.Host() + "/rejected/app:v1", namespace: "trusting"}, Want: classOK, From: "signed"},
		{Name: "accepted by the node, rejected by the namespace", pull: pull{image: r.Host() + "/free/app:v1", namespace: "locked"}, Want: classPolicy},
		{Name: "a namespace without a policy", pull: pull{image: r.Host() + "/rejected/app:v1", namespace: "unheard-of"}, Want: classPolicy},
		{Name: "a namespace with a broken policy", pull: pull{image: r.Host() + "/free/app:v1", namespace: "broken"}, Want: classOther},
	}
	for i, s := range signers(w, r) {
		cases = append(cases, signedCases(w, r, s, []string{"simple", "key", "keyless"}[i])...)
	}
	return cases
}

// signedCases are those of one way to sign, in repositories below dir.
func signedCases(w *world, r *fakeregistry.Registry, s signer, dir string) []testCase {
	host := r.Host()
	w.conf.policy[host+"/"+dir] = []signing.Requirement{s.requirement}
	w.conf.namespaces[dir] = signing.Policy(map[string][]signing.Requirement{"": {s.requirement}})
	put := func(name string, claim func(fakeregistry.Pushed) signing.Claim, right bool) string {
		p := w.push(r, name, "v1", name)
		if claim != nil {
			s.sign(claim(p), right, name)
		}
		return p.Reference
	}
	honest := func(p fakeregistry.Pushed) signing.Claim {
		return signing.Claim{Reference: p.Reference, Digest: p.Digest}
	}
	renamed := func(p fakeregistry.Pushed) signing.Claim {
		return signing.Claim{Reference: host + "/" + dir + "/else:v1", Digest: p.Digest}
	}
	good, unsigned := put(dir+"/good", honest, true), put(dir+"/unsigned", nil, true)
	forged, other := put(dir+"/forged", honest, false), put(dir+"/other", renamed, true)
	index, instance := w.signedIndexes(r, s, dir)
	mirrored := "signed-mirror.test/" + dir + "/mirrored"
	w.conf.policy["signed-mirror.test/"+dir] = []signing.Requirement{s.requirement}
	atMirror := put(dir+"/mirrored", func(p fakeregistry.Pushed) signing.Claim {
		return signing.Claim{Reference: mirrored + ":v1", Digest: p.Digest}
	}, true)
	pinned := w.push(r, dir+"/good", "again", dir+"/good").Digest.String()
	return []testCase{
		{Name: s.name + ": accepted", pull: pull{image: good}, Want: classOK, From: "signed"},
		{Name: s.name + ": missing", pull: pull{image: unsigned}, Want: classPolicy},
		{Name: s.name + ": wrong key", pull: pull{image: forged}, Want: classPolicy},
		{Name: s.name + ": signed for another name", pull: pull{image: other}, Want: classPolicy},
		{Name: s.name + ": the instance of an index is signed", pull: pull{image: instance}, Want: classOK, From: "signed"},
		{Name: s.name + ": only the index is signed", pull: pull{image: index}, Want: classPolicy},
		{Name: s.name + ": by digest", pull: pull{image: scope(good) + "@" + pinned}, Want: classOK, From: "signed"},
		{Name: s.name + ": signed for the name behind a mirror", pull: pull{image: mirrored + ":v1"}, Want: classOK, From: "signed"},
		{Name: s.name + ": the mirror's name was not signed", pull: pull{image: atMirror}, Want: classPolicy},
		{Name: s.name + ": of a namespace, accepted", pull: pull{image: good, namespace: dir}, Want: classOK, From: "signed"},
		{Name: s.name + ": of a namespace, not signed", pull: pull{image: host + "/free/app:v1", namespace: dir}, Want: classPolicy},
	}
}

// signedIndexes pushes an index whose own signature is the only one, and one whose
// instance's is.
func (w *world) signedIndexes(r *fakeregistry.Registry, s signer, dir string) (index, instance string) {
	put := func(name string, digestOf func(index, instance fakeregistry.Pushed) digest.Digest) string {
		p := w.push(r, name, "instance", name)
		i := r.PushIndex(w.tb, name, "v1", p.Entry("linux", runtime.GOARCH, ""))
		s.sign(signing.Claim{Reference: i.Reference, Digest: digestOf(i, p)}, true, name)
		return i.Reference
	}
	index = put(dir+"/index", func(i, _ fakeregistry.Pushed) digest.Digest { return i.Digest })
	instance = put(dir+"/instance", func(_, p fakeregistry.Pushed) digest.Digest { return p.Digest })
	return index, instance
}
