package main

import (
	"encoding/base64"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

const (
	identityToken = "alice-identity-secret"
	registryToken = "fixed-registry-secret"
)

// tenants are two users with a repository each.
func tenants() []fakeregistry.User {
	return []fakeregistry.User{
		{Name: "alice", Password: "alice-secret", Repositories: []string{"alice/app"}, IdentityToken: identityToken},
		{Name: "bob", Password: "bob-secret", Repositories: []string{"bob/app"}},
	}
}

func login(user, password string) *cri.AuthConfig {
	return &cri.AuthConfig{Username: user, Password: password}
}

func encoded(s string) *cri.AuthConfig {
	return &cri.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte(s))}
}

// credentialCases: those of the request, against both schemes.
func credentialCases(w *world) []testCase {
	var cases []testCase
	for _, scheme := range []string{"basic", "bearer"} {
		r := w.registry(scheme, fakeregistry.Options{
			Users: tenants(), Public: []string{"public/app"}, Bearer: scheme == "bearer", RegistryToken: registryToken,
		})
		for _, repository := range []string{"alice/app", "bob/app", "public/app"} {
			w.push(r, repository, "v1", scheme+" "+repository)
		}
		w.add(plain("", r.Host()))
		cases = append(cases, loginCases(scheme, r.Host())...)
	}
	return append(append(cases, tokenCases(w)...), mirrorAuthCases(w)...)
}

func loginCases(scheme, host string) []testCase {
	ask := func(repository string, auth *cri.AuthConfig) pull {
		return pull{image: host + "/" + repository + ":v1", auth: auth}
	}
	both := login("bob", "bob-secret")
	both.Auth = encoded("alice:alice-secret").Auth
	// A registry with tokens never gets to see who was refused one.
	unknown := fakeregistry.Unknown
	if scheme == "bearer" {
		unknown = ""
	}
	cases := []testCase{
		{Name: "user and password", pull: ask("alice/app", login("alice", "alice-secret")), Want: classOK, User: "alice"},
		{Name: "auth", pull: ask("alice/app", encoded("alice:alice-secret")), Want: classOK, User: "alice"},
		{Name: "auth, padded with NUL", pull: ask("alice/app", encoded("alice:alice-secret\x00\x00")), Want: classOK, User: "alice"},
		{Name: "auth wins over user and password", pull: ask("alice/app", both), Want: classOK, User: "alice"},
		{Name: "auth without a colon is none", pull: ask("alice/app", encoded("alice")), Want: classDenied, User: ""},
		{Name: "auth that is not base64", pull: ask("alice/app", &cri.AuthConfig{Auth: "%%%"}), Want: classOther, User: ""},
		{Name: "wrong password", pull: ask("alice/app", login("alice", "wrong-secret")), Want: classDenied, User: unknown},
		{Name: "none", pull: ask("alice/app", nil), Want: classDenied, User: ""},
		{Name: "somebody else's repository", pull: ask("bob/app", login("alice", "alice-secret")), Want: classDenied, User: "alice"},
		{Name: "public, none", pull: ask("public/app", nil), Want: classOK, User: ""},
		{Name: "public, wrong password", pull: ask("public/app", login("alice", "wrong-secret")), Want: classDenied, User: unknown},
	}
	for i := range cases {
		cases[i].Name, cases[i].From = scheme+": "+cases[i].Name, scheme
	}
	return cases
}

// tokenCases are what CRI-O 1.34 does not look at: it takes only username,
// password and auth from the request. Husk takes all that the CRI has.
func tokenCases(w *world) []testCase {
	const why = "CRI-O 1.34 ignores identity_token and registry_token of the CRI (server/image_pull.go); Husk honours them"
	host := w.registries["bearer"].Host()
	ask := func(auth *cri.AuthConfig) pull { return pull{image: host + "/alice/app:v1", auth: auth} }
	return []testCase{
		{
			Name: "identity token", pull: ask(&cri.AuthConfig{IdentityToken: identityToken}),
			Want: classDenied, From: "bearer", Differs: &difference{Why: why, Want: classOK, User: "alice"},
		},
		{
			Name: "registry token", pull: ask(&cri.AuthConfig{RegistryToken: registryToken}),
			Want: classDenied, From: "bearer", Differs: &difference{Why: why, Want: classOK, User: fakeregistry.TokenBearer},
		},
		{
			Name: "wrong identity token", pull: ask(&cri.AuthConfig{IdentityToken: "wrong-secret"}),
			Want: classDenied, From: "bearer", Differs: &difference{Why: why, Want: classDenied},
		},
		{
			Name: "wrong registry token", pull: ask(&cri.AuthConfig{RegistryToken: "wrong-secret"}),
			Want: classDenied, From: "bearer", Differs: &difference{Why: why, Want: classDenied, User: fakeregistry.Unknown},
		},
	}
}

// mirrorAuthCases: credentials are for the host that the reference names, and for
// no mirror of it.
func mirrorAuthCases(w *world) []testCase {
	r := w.registry("guarded", fakeregistry.Options{Users: tenants(), Bearer: true, RegistryToken: registryToken})
	w.push(r, "alice/app", "v1", "guarded")
	// The mirror wants credentials as well, so whatever is sent to it is seen.
	m := w.registry("nosy", fakeregistry.Options{Users: tenants(), Bearer: true, RegistryToken: "another"})
	w.add(
		entry{Location: r.Host(), Insecure: true, Mirrors: []mirror{{Location: m.Host(), Insecure: true}}},
		plain("rewritten-auth.test", r.Host()),
	)
	ask := func(auth *cri.AuthConfig) pull { return pull{image: r.Host() + "/alice/app:v1", auth: auth} }
	const why = "CRI-O 1.34 ignores identity_token and registry_token of the CRI"
	return []testCase{
		{Name: "a mirror sees no password", pull: ask(login("alice", "alice-secret")), Want: classOK, From: "guarded", User: "alice", Secret: "nosy"},
		{
			Name: "a mirror sees no identity token", pull: ask(&cri.AuthConfig{IdentityToken: identityToken}), Secret: "nosy",
			Want: classDenied, From: "guarded", Differs: &difference{Why: why, Want: classOK, User: "alice"},
		},
		{
			Name: "a mirror sees no registry token", pull: ask(&cri.AuthConfig{RegistryToken: registryToken}), Secret: "nosy",
			Want: classDenied, From: "guarded", Differs: &difference{Why: why, Want: classOK, User: fakeregistry.TokenBearer},
		},
		{
			Name: "a location of another name sees no password", Secret: "guarded",
			pull: pull{image: "rewritten-auth.test/alice/app:v1", auth: login("alice", "alice-secret")}, Want: classDenied, From: "guarded",
		},
	}
}

// fileUsers are the users of the registries whose credentials are on the node.
func fileUsers() []fakeregistry.User {
	return []fakeregistry.User{
		{Name: "host", Password: "host-secret"}, {Name: "path", Password: "path-secret"},
		{Name: "deep", Password: "deep-secret"}, {Name: "mirror", Password: "mirror-secret"},
		{Name: "helped", Password: "helped-secret"}, {Name: "asked", Password: "asked-secret"},
	}
}

// authFileCases: global_auth_file, its paths, and a credential helper.
func authFileCases(w *world) []testCase {
	users := fileUsers()
	r := w.registry("filed", fakeregistry.Options{Users: users})
	bearer := w.registry("filed-bearer", fakeregistry.Options{Users: users, Bearer: true})
	helped := w.registry("helped", fakeregistry.Options{Users: users})
	m := w.registry("filed-mirror", fakeregistry.Options{Users: users})
	for _, name := range []string{"app", "team/app", "team/deep/app"} {
		w.push(r, name, "v1", "filed "+name)
	}
	w.push(bearer, "app", "v1", "filed bearer")
	w.push(helped, "app", "v1", "helped")
	w.push(m, "app", "v1", "filed mirror")
	for _, reg := range []*fakeregistry.Registry{r, bearer, helped, m} {
		w.add(plain("", reg.Host()))
	}
	w.add(plain("filed-mirror.test", r.Host(), mirror{Location: m.Host(), Insecure: true}))
	w.conf.auths[r.Host()] = "host:host-secret"
	w.conf.auths[r.Host()+"/team"] = "path:path-secret"
	w.conf.auths[r.Host()+"/team/deep/app"] = "deep:deep-secret"
	w.conf.auths[bearer.Host()] = "host:host-secret"
	w.conf.auths[m.Host()] = "mirror:mirror-secret"
	w.conf.helpers[helped.Host()] = helperName
	ask := func(r *fakeregistry.Registry, name string, auth *cri.AuthConfig) pull {
		return pull{image: r.Host() + "/" + name + ":v1", auth: auth}
	}
	return []testCase{
		{Name: "host", pull: ask(r, "app", nil), Want: classOK, From: "filed", User: "host"},
		{Name: "path", pull: ask(r, "team/app", nil), Want: classOK, From: "filed", User: "path"},
		{Name: "the longest path", pull: ask(r, "team/deep/app", nil), Want: classOK, From: "filed", User: "deep"},
		{Name: "bearer", pull: ask(bearer, "app", nil), Want: classOK, From: "filed-bearer", User: "host"},
		{Name: "helper", pull: ask(helped, "app", nil), Want: classOK, From: "helped", User: "helped"},
		{Name: "the request's win", pull: ask(r, "app", login("asked", "asked-secret")), Want: classOK, From: "filed", User: "asked"},
		{Name: "the request's are wrong", pull: ask(r, "app", login("asked", "wrong-secret")), Want: classDenied, From: "filed", User: fakeregistry.Unknown},
		{Name: "a password without a user is none", pull: ask(r, "app", login("", "asked-secret")), Want: classOK, From: "filed", User: "host"},
		{Name: "a mirror has its own", pull: pull{image: "filed-mirror.test/app:v1"}, Want: classOK, From: "filed-mirror", User: "mirror"},
		{
			Name: "a mirror has its own, not the request's", From: "filed-mirror", User: "mirror",
			pull: pull{image: "filed-mirror.test/app:v1", auth: login("asked", "asked-secret")}, Want: classOK,
		},
	}
}
