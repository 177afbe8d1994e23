package layerpull

import (
	"fmt"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const insecureLine = "insecure = true"

// mirrored is a registry "main" and a mirror "mirror" of the name mirrored.test; arm
// spoils the mirror, and more are lines of its entry.
func mirrored(arm func(m *fakeregistry.Registry), more ...string) func(*site) string {
	return func(w *site) string {
		r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{})
		w.push(r, "app")
		w.push(m, "app")
		if arm != nil {
			arm(m)
		}
		w.conf("mirrored.test", r.Host(), insecureLine, mirror(m.Host(), more...))
		return "mirrored.test/app"
	}
}

// mirrorComparisons: which mirror is asked, when, and what happens if it fails.
func mirrorComparisons() []comparison {
	fails := func(status int, body string) func(*fakeregistry.Registry) {
		return func(m *fakeregistry.Registry) {
			m.On(fakeregistry.Manifest(""), fakeregistry.Status(status, body))
		}
	}
	return []comparison{
		{name: "first", want: ok, from: "mirror", arrange: mirrored(nil)},
		{name: "down", want: ok, from: "main", arrange: mirrored(func(m *fakeregistry.Registry) { m.Stop() })},
		{name: "404", want: ok, from: "main", arrange: mirrored(fails(404, ""))},
		{name: "401", want: ok, from: "main", arrange: mirrored(fails(401, ""))},
		{name: "403", want: ok, from: "main", arrange: mirrored(fails(403, `{"errors":[{"code":"DENIED"}]}`))},
		{name: "500", want: ok, from: "main", arrange: mirrored(fails(500, ""))},
		{name: "drops connections", want: ok, from: "main", arrange: mirrored(func(m *fakeregistry.Registry) {
			m.On(fakeregistry.Any, fakeregistry.Drop())
		})},
		{name: "other bytes", want: errdefs.DigestMismatch.String(), arrange: mirrored(func(m *fakeregistry.Registry) {
			m.On(fakeregistry.Manifest(""), fakeregistry.Corrupt())
		})},
		{name: "without the config", want: errdefs.NotFound.String(), arrange: func(w *site) string {
			image := mirrored(nil)(w)
			w.registries["mirror"].On(fakeregistry.Blob(w.pushed.ConfigDigest.String()), fakeregistry.Status(404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`))
			return image
		}},
		{name: "all fail, and the last says why", want: errdefs.NotFound.String(), arrange: func(w *site) string {
			image := mirrored(fails(401, ""))(w)
			w.registries["main"].On(fakeregistry.Manifest(""), fakeregistry.Status(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`))
			return image
		}},
		{name: "digest-only", want: ok, from: "mirror", arrange: mirrored(nil, `pull-from-mirror = "digest-only"`)},
		{name: "tag-only", want: ok, from: "main", arrange: mirrored(nil, `pull-from-mirror = "tag-only"`)},
		{name: "mirror-by-digest-only", want: ok, from: "mirror", arrange: func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{})
			w.push(r, "app")
			w.push(m, "app")
			w.conf("mirrored.test", r.Host(), insecureLine, "mirror-by-digest-only = true", mirror(m.Host()))
			return "mirrored.test/app"
		}},
		{name: "mirror-by-digest-only and tag-only", want: errdefs.Internal.String(), arrange: func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{})
			w.push(r, "app")
			w.conf("mirrored.test", r.Host(), insecureLine, "mirror-by-digest-only = true", mirror(m.Host(), `pull-from-mirror = "tag-only"`))
			return "mirrored.test/app"
		}},
		{name: "pull-from-mirror is nonsense", want: errdefs.Internal.String(), arrange: mirrored(nil, `pull-from-mirror = "never"`)},
		{name: "not insecure", want: ok, from: "main", arrange: func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{})
			w.push(m, "app")
			w.push(r, "app")
			w.conf("mirrored.test", r.Host(), insecureLine, "[[registry.mirror]]", fmt.Sprintf("location = %q", m.Host()))
			return "mirrored.test/app"
		}},
		{name: "in order", want: ok, from: "second", arrange: func(w *site) string {
			r, a, b := w.registry("main", fakeregistry.Options{}), w.registry("first", fakeregistry.Options{}), w.registry("second", fakeregistry.Options{})
			c := w.registry("third", fakeregistry.Options{})
			for _, reg := range []*fakeregistry.Registry{r, b, c} {
				w.push(reg, "app")
			}
			w.conf("mirrored.test", r.Host(), insecureLine, mirror(a.Host()), mirror(b.Host()), mirror(c.Host()))
			return "mirrored.test/app"
		}},
		{name: "path rewritten", want: ok, from: "mirror", arrange: func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{Mirror: fakeregistry.PathPrefix("cache/hub")})
			w.push(m, "team/app")
			w.conf("mirrored.test", r.Host(), insecureLine, mirror(m.Host()+"/cache/hub"))
			return "mirrored.test/team/app"
		}},
		{name: "of a namespace", want: ok, from: "mirror", arrange: func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{})
			w.push(m, "copy/app")
			w.conf("mirrored.test/team", r.Host()+"/team", insecureLine, mirror(m.Host()+"/copy"))
			return "mirrored.test/team/app"
		}},
		{name: "not of a neighbour", want: ok, from: "main", arrange: func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{})
			w.push(r, "teams/app")
			w.conf("mirrored.test", r.Host(), insecureLine)
			w.conf("mirrored.test/team", r.Host()+"/team", insecureLine, mirror(m.Host()))
			return "mirrored.test/teams/app"
		}},
		{name: "an index and its instance", want: ok, from: "mirror", arrange: func(w *site) string {
			image := mirrored(nil)(w)
			for _, r := range w.registries {
				p := r.Push(w.t, "app", "v1", compareImage(w.t, "label"))
				w.pushed = r.PushIndex(w.t, "app", "index", p.Entry("linux", "s390x", ""), p.Entry("linux", "amd64", ""), p.Entry("linux", "arm64", ""))
			}
			return image
		}},
	}
}

// blockedComparisons: what is blocked is not asked.
func blockedComparisons() []comparison {
	unsupported := errdefs.Unsupported.String()
	return []comparison{
		{name: "registry", want: unsupported, arrange: func(w *site) string {
			r := w.registry("main", fakeregistry.Options{})
			w.conf("", r.Host(), insecureLine, "blocked = true")
			return w.push(r, "app").Repository
		}},
		{name: "namespace", want: unsupported, arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			w.conf("", r.Host()+"/team", insecureLine, "blocked = true")
			return w.push(r, "team/app").Repository
		}},
		{name: "beside a namespace", want: ok, from: "main", arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			w.conf("", r.Host()+"/team", insecureLine, "blocked = true")
			return w.push(r, "teams/app").Repository
		}},
		{name: "unblocked in a blocked one", want: ok, from: "main", arrange: func(w *site) string {
			r := w.registry("main", fakeregistry.Options{})
			w.conf("", r.Host(), insecureLine, "blocked = true")
			w.conf("", r.Host()+"/team", insecureLine)
			return w.push(r, "team/app").Repository
		}},
		{name: "another digest of the repository", want: ok, from: "main", arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			p := w.push(r, "app")
			w.conf("", p.Repository+":v1", insecureLine, "blocked = true")
			return p.Repository
		}},
		{name: "another location", want: ok, from: "main", arrange: func(w *site) string {
			r := w.registry("main", fakeregistry.Options{})
			w.push(r, "app")
			w.conf("blocked.test", r.Host(), insecureLine, "blocked = true")
			return "blocked.test/app"
		}},
		{name: "with a mirror", want: ok, from: "mirror", arrange: func(w *site) string {
			r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{})
			w.push(m, "app")
			w.conf("blocked.test", r.Host(), insecureLine, "blocked = true", mirror(m.Host()))
			return "blocked.test/app"
		}},
	}
}

// nameComparisons: prefixes, locations, wildcards, drop-ins.
func nameComparisons() []comparison {
	const nowhere = "127.0.0.1:1"
	unavailable := errdefs.RegistryUnavailable.String()
	// at is an image under a path of the registry "main".
	at := func(repository string, arrange func(w *site, host string) string) func(*site) string {
		return func(w *site) string {
			r := w.registry("main", fakeregistry.Options{})
			w.push(r, repository)
			return arrange(w, r.Host())
		}
	}
	return []comparison{
		{name: "rewritten host", want: ok, from: "main", arrange: at("app", func(w *site, host string) string {
			w.conf("named.test", host, insecureLine)
			return "named.test/app"
		})},
		{name: "rewritten path", want: ok, from: "main", arrange: at("moved/to/app", func(w *site, host string) string {
			w.conf("named.test/team", host+"/moved/to", insecureLine)
			return "named.test/team/app"
		})},
		{name: "longest prefix", want: ok, from: "main", arrange: at("app", func(w *site, host string) string {
			w.conf("named.test", nowhere, insecureLine)
			w.conf("named.test/team/deep", host, insecureLine)
			w.conf("named.test/team", nowhere, insecureLine)
			return "named.test/team/deep/app"
		})},
		{name: "a prefix ends at a slash", want: unavailable, arrange: at("app", func(w *site, host string) string {
			w.conf("named.test", nowhere, insecureLine)
			w.conf("named.test/te", host, insecureLine)
			return "named.test/team/app"
		})},
		{name: "wildcard", want: ok, from: "main", arrange: at("app", func(w *site, host string) string {
			w.conf("*.wild.test", host, insecureLine)
			return "a.b.wild.test/app"
		})},
		{name: "wildcard is not the domain itself", want: unavailable, arrange: at("app", func(w *site, host string) string {
			w.conf("*.wild.test", host, insecureLine)
			w.conf("wild.test", nowhere, insecureLine)
			return "wild.test/app"
		})},
		{name: "a longer name wins over a wildcard", want: ok, from: "main", arrange: at("app", func(w *site, host string) string {
			w.conf("*.wild.test", nowhere, insecureLine)
			w.conf("long.wild.test", host, insecureLine)
			return "long.wild.test/app"
		})},
		{name: "a wildcard wins over a name that is no longer", want: unavailable, arrange: at("app", func(w *site, host string) string {
			w.conf("*.wild.test", nowhere, insecureLine)
			w.conf("a.wild.test", host, insecureLine)
			return "a.wild.test/app"
		})},
		{name: "wildcard of addresses", want: errdefs.Internal.String(), arrange: at("app", func(w *site, host string) string {
			w.conf("*.0.0.1:"+host[len("127.0.0.1:"):], "")
			return host + "/app"
		})},
		{name: "drop-in", want: ok, from: "main", arrange: at("app", func(w *site, host string) string {
			w.write("registries.conf.d/10.conf", fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", "named.test", host))
			return "named.test/app"
		})},
		{name: "drop-in in the place of the file's", want: ok, from: "main", arrange: at("app", func(w *site, host string) string {
			w.conf("named.test", nowhere, insecureLine)
			w.write("registries.conf.d/10.conf", fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", "named.test", host))
			return "named.test/app"
		})},
		{name: "the later drop-in", want: ok, from: "main", arrange: at("app", func(w *site, host string) string {
			w.write("registries.conf.d/10.conf", fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", "named.test", nowhere))
			w.write("registries.conf.d/20.conf", fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", "named.test", host))
			return "named.test/app"
		})},
		{name: "a drop-in of another name than .conf", want: unavailable, arrange: at("app", func(w *site, host string) string {
			w.conf("named.test", nowhere, insecureLine)
			w.write("registries.conf.d/10.toml", fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", "named.test", host))
			return "named.test/app"
		})},
		{name: "drop-in blocks", want: errdefs.Unsupported.String(), arrange: at("app", func(w *site, host string) string {
			w.conf("", host, insecureLine)
			w.write("registries.conf.d/10.conf", fmt.Sprintf("[[registry]]\nlocation = %q\nblocked = true\n", host))
			return host + "/app"
		})},
	}
}
