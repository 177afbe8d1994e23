package layerpull

import (
	"net/http"
	"os"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// helperName is the credential helper, docker-credential-compare.
const helperName = "compare"

// helperScript knows the user "helped" of every host.
const helperScript = `#!/bin/sh
[ "$1" = get ] || exit 1
read -r host
printf '{"ServerURL":"%s","Username":"helped","Secret":"helped-secret"}' "$host"
`

// users are known to every registry that wants credentials.
func users() []fakeregistry.User {
	return []fakeregistry.User{
		{Name: "host", Password: "host-secret", IdentityToken: "host-identity"},
		{Name: "path", Password: "path-secret"},
		{Name: "deep", Password: "deep-secret"},
		{Name: "mirror", Password: "mirror-secret"},
		{Name: "helped", Password: "helped-secret"},
		{Name: "asked", Password: "asked-secret", IdentityToken: "asked-identity"},
		{Name: "beside", Password: "beside-secret", Repositories: []string{"other"}},
	}
}

// closed is a registry that wants credentials: a password, or with bearer a token.
func (w *site) closed(name string, bearer bool) *fakeregistry.Registry {
	return w.open(name, fakeregistry.Options{Users: users(), Bearer: bearer})
}

// authComparisons: what the auth file says.
func authComparisons() []comparison {
	denied := errdefs.Unauthorized.String()
	// filed is an image in a registry with these logins; keys begin behind the host.
	filed := func(bearer bool, repository string, logins map[string]string) func(*site) string {
		return func(w *site) string {
			r := w.closed("main", bearer)
			hosted := map[string]string{}
			for scope, login := range logins {
				hosted[r.Host()+scope] = login
			}
			w.auth(hosted)
			return w.push(r, repository).Repository
		}
	}
	logins := map[string]string{
		"": "host:host-secret", "/team": "path:path-secret", "/team/deep/app": "deep:deep-secret", "/tea": "mirror:mirror-secret",
	}
	return []comparison{
		{name: "registry", want: ok, from: "main", user: "host", arrange: filed(false, "app", logins)},
		{name: "namespace", want: ok, from: "main", user: "path", arrange: filed(false, "team/app", logins)},
		{name: "namespace, deeper", want: ok, from: "main", user: "path", arrange: filed(false, "team/deep/other", logins)},
		{name: "repository", want: ok, from: "main", user: "deep", arrange: filed(false, "team/deep/app", logins)},
		{name: "not a part of a component", want: ok, from: "main", user: "host", arrange: filed(false, "teams/app", logins)},
		{name: "bearer", want: ok, from: "main", user: "host", arrange: filed(true, "app", logins)},
		{name: "bearer, repository", want: ok, from: "main", user: "deep", arrange: filed(true, "team/deep/app", logins)},
		{name: "wrong password", want: denied, arrange: filed(false, "app", map[string]string{"": "host:wrong"})},
		{name: "wrong password, bearer", want: denied, arrange: filed(true, "app", map[string]string{"": "host:wrong"})},
		{name: "of another registry", want: denied, arrange: func(w *site) string {
			w.auth(map[string]string{"other.test": "host:host-secret"})
			return w.push(w.closed("main", false), "app").Repository
		}},
		{name: "of another repository", want: denied, arrange: filed(true, "app", map[string]string{"": "beside:beside-secret"})},
		{name: "none", want: denied, arrange: func(w *site) string { return w.push(w.closed("main", true), "app").Repository }},
		{name: "empty file", want: denied, arrange: func(w *site) string {
			w.write("auth.json", "{}")
			return w.push(w.closed("main", false), "app").Repository
		}},
		{name: "file of no bytes", want: errdefs.Internal.String(), arrange: func(w *site) string {
			w.write("auth.json", "")
			return w.push(w.open("main", fakeregistry.Options{}), "app").Repository
		}},
		{name: "entry without auth", want: denied, arrange: func(w *site) string {
			r := w.closed("main", false)
			w.authJSON(map[string]any{"auths": map[string]any{r.Host(): map[string]string{}}})
			return w.push(r, "app").Repository
		}},
		{name: "by URL, as docker once wrote it", want: ok, from: "main", user: "host", arrange: func(w *site) string {
			r := w.closed("main", false)
			w.auth(map[string]string{"https://" + r.Host() + "/v1/": "host:host-secret"})
			return w.push(r, "app").Repository
		}},
		{name: "identity token", want: ok, from: "main", user: "host", arrange: func(w *site) string {
			r := w.closed("main", true)
			w.authJSON(map[string]any{"auths": map[string]any{r.Host(): map[string]string{
				"auth": "aG9zdDppZ25vcmVk", "identitytoken": "host-identity", // host:ignored
			}}})
			return w.push(r, "app").Repository
		}},
		{name: "helper of the auth file", want: ok, from: "main", user: "helped", arrange: func(w *site) string {
			r := w.closed("main", false)
			w.authJSON(map[string]any{"credHelpers": map[string]string{r.Host(): helperName}})
			return w.push(r, "app").Repository
		}},
		{name: "helper of registries.conf", want: ok, from: "main", user: "helped", arrange: func(w *site) string {
			w.entries = append(w.entries, `credential-helpers = ["`+helperName+`"]`)
			return w.push(w.closed("main", false), "app").Repository
		}},
		{name: "auth file before a helper of registries.conf", want: ok, from: "main", user: "host", arrange: func(w *site) string {
			w.entries = append(w.entries, `credential-helpers = ["containers-auth.json", "`+helperName+`"]`)
			r := w.closed("main", false)
			w.auth(map[string]string{r.Host(): "host:host-secret"})
			return w.push(r, "app").Repository
		}},
		{name: "helper that is not there", want: errdefs.Internal.String(), arrange: func(w *site) string {
			r := w.closed("main", false)
			w.authJSON(map[string]any{"credHelpers": map[string]string{r.Host(): "nobody"}})
			return w.push(r, "app").Repository
		}},
		{name: "a mirror has its own", want: ok, from: "mirror", user: "mirror", private: []string{"main"}, arrange: func(w *site) string {
			r, m := w.closed("main", false), w.closed("mirror", false)
			w.conf("mirrored.test", r.Host(), insecureLine, mirror(m.Host()))
			w.auth(map[string]string{m.Host(): "mirror:mirror-secret", "mirrored.test": "host:host-secret", r.Host(): "host:host-secret"})
			w.push(m, "app")
			return "mirrored.test/app"
		}},
		{name: "the location's, not the name's", want: ok, from: "main", user: "host", arrange: func(w *site) string {
			r := w.closed("main", false)
			w.conf("named.test", r.Host(), insecureLine)
			w.auth(map[string]string{"named.test": "path:path-secret", r.Host(): "host:host-secret"})
			w.push(r, "app")
			return "named.test/app"
		}},
	}
}

// elsewhere makes a registry send clients for tokens to another one, which gives them
// to everybody who knows a password.
func elsewhere(r, tokens *fakeregistry.Registry) {
	anonymous := func(req *http.Request) bool { return req.Header.Get("Authorization") == "" }
	r.On(anonymous, func(w http.ResponseWriter, _ *http.Request, _ *fakeregistry.Registry) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL()+`/token",service="elsewhere"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	tokens.On(fakeregistry.Token, fakeregistry.Serve("application/json", []byte(`{"token":"`+r.BearerToken()+`"}`)))
}

// requestComparisons: the credentials of the request, and where none may go.
func requestComparisons() []comparison {
	denied := errdefs.Unauthorized.String()
	asked := registryauth.Credentials{Username: "asked", Password: "asked-secret"}
	with := func(c registryauth.Credentials, arrange func(*site) string) func(*site) string {
		return func(w *site) string {
			w.credentials = c
			return arrange(w)
		}
	}
	main := func(bearer bool) func(*site) string {
		return func(w *site) string { return w.push(w.closed("main", bearer), "app").Repository }
	}
	// behind is a mirror in front of the registry, which has the image or not.
	behind := func(bearer, has bool) func(*site) string {
		return func(w *site) string {
			r, m := w.closed("main", bearer), w.open("mirror", fakeregistry.Options{})
			w.conf("mirrored.test", r.Host(), insecureLine, mirror(m.Host()))
			if w.push(r, "app"); has {
				w.push(m, "app")
			}
			return "mirrored.test/app"
		}
	}
	// self is a registry with a mirror, by its own name: the request's credentials are for it.
	self := func(bearer bool) func(*site) string {
		return func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{Users: users(), Bearer: bearer}), w.registry("mirror", fakeregistry.Options{Users: users(), Bearer: bearer})
			w.conf("", r.Host(), insecureLine, mirror(m.Host()))
			w.push(m, "app")
			return w.push(r, "app").Repository
		}
	}
	return []comparison{
		{name: "password", want: ok, from: "main", user: "asked", arrange: with(asked, main(false))},
		{name: "password, bearer", want: ok, from: "main", user: "asked", arrange: with(asked, main(true))},
		{name: "wrong password", want: denied, arrange: with(registryauth.Credentials{Username: "asked", Password: "wrong"}, main(false))},
		{name: "wrong password, bearer", want: denied, arrange: with(registryauth.Credentials{Username: "asked", Password: "wrong"}, main(true))},
		{name: "identity token", want: ok, from: "main", user: "asked", arrange: with(registryauth.Credentials{IdentityToken: "asked-identity"}, main(true))},
		{name: "wrong identity token", want: denied, arrange: with(registryauth.Credentials{IdentityToken: "wrong"}, main(true))},
		{name: "registry token", want: ok, from: "main", user: fakeregistry.TokenBearer, arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{Bearer: true, RegistryToken: "given-token"})
			w.credentials.RegistryToken = "given-token"
			return w.push(r, "app").Repository
		}},
		{name: "wrong registry token", want: denied, arrange: with(registryauth.Credentials{RegistryToken: "wrong"}, main(true))},
		{name: "wins over the auth file", want: ok, from: "main", user: "asked", arrange: with(asked, func(w *site) string {
			r := w.closed("main", false)
			w.auth(map[string]string{r.Host(): "host:host-secret"})
			return w.push(r, "app").Repository
		})},
		{name: "wrong, beside a right auth file", want: denied, arrange: with(registryauth.Credentials{Username: "asked", Password: "wrong"}, func(w *site) string {
			r := w.closed("main", false)
			w.auth(map[string]string{r.Host(): "host:host-secret"})
			return w.push(r, "app").Repository
		})},
		{name: "not to a mirror that is open", want: ok, from: "mirror", private: []string{"mirror"}, arrange: with(asked, behind(false, true))},
		{name: "not to a mirror that asks", want: ok, from: "main", user: "asked", private: []string{"mirror"}, arrange: with(asked, self(false))},
		{name: "not to a mirror that asks, bearer", want: ok, from: "main", user: "asked", private: []string{"mirror"}, arrange: with(asked, self(true))},
		{name: "identity token not to a mirror", want: ok, from: "main", user: "asked", private: []string{"mirror"}, arrange: with(registryauth.Credentials{IdentityToken: "asked-identity"}, self(true))},
		{name: "not to another location", want: denied, private: []string{"main", "mirror"}, arrange: with(asked, behind(false, false))},
		{name: "a mirror's own beside them", want: ok, from: "mirror", user: "mirror", private: []string{"main"}, arrange: with(asked, func(w *site) string {
			image := self(false)(w)
			w.auth(map[string]string{w.registries["mirror"].Host(): "mirror:mirror-secret"})
			return image
		})},
		{name: "token service on another host", want: ok, from: "main", user: fakeregistry.TokenBearer, arrange: with(asked, func(w *site) string {
			r := w.open("main", fakeregistry.Options{Bearer: true})
			elsewhere(r, w.registry("tokens", fakeregistry.Options{Users: users(), Listen: "127.0.0.2:0"}))
			return w.push(r, "app").Repository
		})},
		{name: "blobs on another host", want: ok, from: "main", user: "asked", private: []string{"cdn"}, arrange: with(asked, redirected(false))},
		{name: "blobs on another host, bearer", want: ok, from: "main", user: "asked", private: []string{"cdn"}, arrange: with(asked, redirected(true))},
		{name: "a mirror's token service", want: ok, from: "mirror", user: fakeregistry.TokenBearer, private: []string{"tokens"}, arrange: with(asked, func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{Users: users()}), w.registry("mirror", fakeregistry.Options{Bearer: true})
			elsewhere(m, w.registry("tokens", fakeregistry.Options{Users: users()}))
			w.conf("", r.Host(), insecureLine, mirror(m.Host()))
			w.push(m, "app")
			return w.push(r, "app").Repository
		})},
	}
}

// redirected is a registry whose blobs are at another host.
func redirected(bearer bool) func(*site) string {
	return func(w *site) string {
		r, cdn := w.closed("main", bearer), w.registry("cdn", fakeregistry.Options{Listen: "127.0.0.2:0"})
		w.push(cdn, "app")
		r.On(fakeregistry.Blob(""), fakeregistry.Redirect(cdn.URL()))
		return w.push(r, "app").Repository
	}
}

// fileComparisons: files that are not as they should be.
func fileComparisons() []comparison {
	internal := errdefs.Internal.String()
	broken := func(spoil func(w *site)) func(*site) string {
		return func(w *site) string {
			image := w.push(w.open("main", fakeregistry.Options{}), "app").Repository
			spoil(w)
			return image
		}
	}
	writes := func(name, content string) func(*site) string {
		return broken(func(w *site) { w.write(name, content) })
	}
	return []comparison{
		{name: "auth.json", want: internal, arrange: writes("auth.json", "{")},
		{name: "auth.json, not base64", want: internal, arrange: broken(func(w *site) {
			w.authJSON(map[string]any{"auths": map[string]any{w.registries["main"].Host(): map[string]string{"auth": "!"}}})
		})},
		{name: "auth.json is a directory", want: internal, arrange: broken(func(w *site) {
			NewWithT(w.t).Expect(os.Mkdir(w.path("auth.json"), 0o700)).To(Succeed())
		})},
		{name: "registries.conf", want: internal, arrange: writes("registries.conf", "[[registry")},
		{name: "registries.conf without a location", want: internal, arrange: writes("registries.conf", "[[registry]]\nblocked = true\n")},
		{name: "registries.conf contradicts itself", want: internal, arrange: broken(func(w *site) {
			w.conf("", w.registries["main"].Host(), "insecure = false")
		})},
		{name: "registries.conf is not there", want: internal, arrange: broken(func(w *site) {
			NewWithT(w.t).Expect(os.Remove(w.path("registries.conf"))).To(Succeed())
		})},
		{name: "a drop-in", want: internal, arrange: writes("registries.conf.d/10.conf", "[[registry")},
		{name: "registries.d", want: internal, arrange: writes("registries.d/x.yaml", "docker: [")},
		{name: "registries.d, unknown field", want: ok, from: "main", arrange: writes("registries.d/x.yaml", "docker:\n  x.test:\n    nonsense: true\n")},
		{name: "policy.json", want: internal, arrange: writes("policy.json", "{")},
		{name: "policy.json without a default", want: internal, arrange: writes("policy.json", `{"transports":{}}`)},
		{name: "policy.json, unknown type", want: internal, arrange: writes("policy.json", `{"default":[{"type":"trustMe"}]}`)},
		{name: "policy.json, unknown field", want: internal, arrange: writes("policy.json", `{"default":[{"type":"reject","x":1}]}`)},
		{name: "policy.json, no requirements", want: internal, arrange: writes("policy.json", `{"default":[]}`)},
		{name: "policy.json is not there", want: internal, arrange: broken(func(w *site) {
			NewWithT(w.t).Expect(os.Remove(w.path("policy.json"))).To(Succeed())
		})},
	}
}
