package main

import "github.com/husk-cri/husk/internal/testkit/fakeregistry"

// plain is an entry of registries.conf whose location speaks plain HTTP.
func plain(prefix, location string, mirrors ...mirror) entry {
	return entry{Prefix: prefix, Location: location, Insecure: true, Mirrors: mirrors}
}

func (w *world) add(entries ...entry) { w.conf.entries = append(w.conf.entries, entries...) }

// mirrorCases: order, fallback and pull-from-mirror.
func mirrorCases(w *world) []testCase {
	origin := w.registry("origin", fakeregistry.Options{})
	a, b := w.registry("mirror-a", fakeregistry.Options{}), w.registry("mirror-b", fakeregistry.Options{})
	down := w.registry("down", fakeregistry.Options{})
	down.Stop()
	at := func(r *fakeregistry.Registry) mirror { return mirror{Location: r.Host(), Insecure: true} }
	only := func(r *fakeregistry.Registry, what string) mirror {
		return mirror{Location: r.Host(), Insecure: true, For: what}
	}

	w.push(origin, "app", "v1", "origin's app")
	w.push(a, "app", "v1", "mirror-a's app")
	w.push(b, "second", "v1", "mirror-b's")
	w.push(origin, "last", "v1", "origin's")
	w.push(a, "cache/hub/app", "v1", "below a path")
	same := w.push(origin, "same", "v1", "the same")
	w.push(a, "same", "v1", "the same")
	digest := "same@" + same.Digest.String()

	w.add(
		plain("first.test", origin.Host(), at(a), at(b)),
		plain("broken.test", origin.Host(), at(down), at(a)),
		plain("gone.test", down.Host(), at(down)),
		plain("path.test", origin.Host(), mirror{Location: a.Host() + "/cache/hub", Insecure: true}),
		plain("digests.test", origin.Host(), only(a, "digest-only")),
		plain("tags.test", origin.Host(), only(a, "tag-only")),
		plain("all.test", origin.Host(), only(a, "all")),
		entry{Prefix: "old.test", Location: origin.Host(), Insecure: true, ByDigestOnly: true, Mirrors: []mirror{at(a)}},
		plain("secure.test", origin.Host(), mirror{Location: a.Host()}),
	)
	return []testCase{
		{Name: "the first mirror", pull: pull{image: "first.test/app:v1"}, Want: classOK, From: "mirror-a"},
		{Name: "the second mirror", pull: pull{image: "first.test/second:v1"}, Want: classOK, From: "mirror-b"},
		{Name: "the origin, after all mirrors", pull: pull{image: "first.test/last:v1"}, Want: classOK, From: "origin"},
		{Name: "nobody has it", pull: pull{image: "first.test/none:v1"}, Want: classMissing, From: "origin"},
		{Name: "a mirror that is down", pull: pull{image: "broken.test/app:v1"}, Want: classOK, From: "mirror-a"},
		{Name: "a mirror that is down, one without it", pull: pull{image: "broken.test/last:v1"}, Want: classOK, From: "origin"},
		{Name: "all down", pull: pull{image: "gone.test/app:v1"}, Want: classRefused},
		{Name: "a path on the mirror", pull: pull{image: "path.test/app:v1"}, Want: classOK, From: "mirror-a"},
		{Name: "digest-only, by tag", pull: pull{image: "digests.test/same:v1"}, Want: classOK, From: "origin"},
		{Name: "digest-only, by digest", pull: pull{image: "digests.test/" + digest}, Want: classOK, From: "mirror-a"},
		{Name: "tag-only, by tag", pull: pull{image: "tags.test/same:v1"}, Want: classOK, From: "mirror-a"},
		{Name: "tag-only, by digest", pull: pull{image: "tags.test/" + digest}, Want: classOK, From: "origin"},
		{Name: "all, by tag", pull: pull{image: "all.test/same:v1"}, Want: classOK, From: "mirror-a"},
		{Name: "all, by digest", pull: pull{image: "all.test/" + digest}, Want: classOK, From: "mirror-a"},
		{Name: "mirror-by-digest-only, by tag", pull: pull{image: "old.test/same:v1"}, Want: classOK, From: "origin"},
		{Name: "mirror-by-digest-only, by digest", pull: pull{image: "old.test/" + digest}, Want: classOK, From: "mirror-a"},
		{Name: "a mirror that is not insecure, by plain HTTP", pull: pull{image: "secure.test/same:v1"}, Want: classOK, From: "origin"},
	}
}

// nameCases: rewriting, blocking and short names.
func nameCases(w *world) []testCase {
	r, other := w.registry("named", fakeregistry.Options{}), w.registry("other", fakeregistry.Options{})
	// A location is blocked in all entries or in none: these are of the blocked names alone.
	blocked, evaded := w.registry("blocked", fakeregistry.Options{}), w.registry("evaded", fakeregistry.Options{})
	w.push(blocked, "plain", "v1", "blocked")
	w.push(evaded, "plain", "v1", "blocked by another name")
	w.push(r, "new/place/app", "v1", "rewritten")
	w.push(other, "special/app", "v1", "rewritten further")
	w.push(r, "wild/app", "v1", "below a wildcard")
	w.push(r, "plain", "v1", "plain")
	w.push(r, "plain", "latest", "plain latest")
	w.push(r, "short", "latest", "short latest")
	w.push(r, "short", "v2", "short v2")
	w.push(r, "searched", "v1", "searched")
	w.push(other, "both", "v1", "both, first")
	w.push(r, "both", "v1", "both, second")

	w.add(
		plain("rewrite.test/team", r.Host()+"/new/place"),
		plain("rewrite.test/team/deep", other.Host()+"/special"),
		plain("*.wild.test", r.Host()+"/wild"),
		entry{Location: blocked.Host(), Insecure: true, Blocked: true},
		plain("detour.test", r.Host(), mirror{Location: blocked.Host(), Insecure: true}),
		entry{Prefix: "blocked.test", Location: evaded.Host(), Insecure: true, Blocked: true},
		entry{Prefix: "part.test/closed", Location: evaded.Host(), Insecure: true, Blocked: true},
		plain("part.test", r.Host()),
		entry{Prefix: "mirrored.test", Location: evaded.Host(), Insecure: true, Blocked: true, Mirrors: []mirror{{Location: r.Host(), Insecure: true}}},
		plain("one.test", other.Host()),
		plain("two.test", r.Host()),
		plain("", r.Host()),
	)
	w.conf.search = []string{"one.test", "two.test"}
	w.conf.aliases["compat-short"] = r.Host() + "/short"
	w.conf.dropIns["20-drop-in.conf"] = map[string]any{"registry": []entry{plain("dropped.test", r.Host())}}
	return []testCase{
		{Name: "prefix rewritten", pull: pull{image: "rewrite.test/team/app:v1"}, Want: classOK, From: "named"},
		{Name: "the longest prefix", pull: pull{image: "rewrite.test/team/deep/app:v1"}, Want: classOK, From: "other"},
		{Name: "wildcard", pull: pull{image: "eu.wild.test/app:v1"}, Want: classOK, From: "named"},
		{Name: "wildcard, deeper", pull: pull{image: "a.b.wild.test/app:v1"}, Want: classOK, From: "named"},
		{Name: "drop-in of registries.conf.d", pull: pull{image: "dropped.test/plain:v1"}, Want: classOK, From: "named"},
		{Name: "blocked", pull: pull{image: blocked.Host() + "/plain:v1"}, Want: classBlocked},
		{Name: "a blocked mirror", pull: pull{image: "detour.test/plain:v1"}, Want: classOK, From: "named"},
		{Name: "beside a blocked namespace", pull: pull{image: "part.test/plain:v1"}, Want: classOK, From: "named"},
		blockedName("blocked name of another location", "blocked.test/plain:v1"),
		blockedName("blocked namespace of another location", "part.test/closed/plain:v1"),
		blockedName("blocked name with a mirror", "mirrored.test/plain:v1"),
		{Name: "alias", pull: pull{image: "compat-short"}, Want: classOK, From: "named"},
		{Name: "alias, with a tag", pull: pull{image: "compat-short:v2"}, Want: classOK, From: "named"},
		{Name: "searched: the first has it", pull: pull{image: "both:v1"}, Want: classOK, From: "other"},
		{Name: "searched: the second has it", pull: pull{image: "searched:v1"}, Want: classOK, From: "named"},
		{Name: "searched: none has it", pull: pull{image: "nowhere:v1"}, Want: classMissing, From: "named"},
		{Name: "no tag", pull: pull{image: r.Host() + "/plain"}, Want: classOK, From: "named"},
		{Name: "no reference", pull: pull{image: r.Host() + "/UPPER:v1"}, Want: className},
	}
}

// blockedName is a name that registries.conf blocks and sends elsewhere.
func blockedName(name, image string) testCase {
	return testCase{Name: name, pull: pull{image: image}, Want: classOK, Differs: &difference{
		Why: "containers/image looks for blocked = true under the location's name alone; containers-registries.conf(5) says " +
			"\"pulling images with matching names is forbidden\", and Husk forbids it",
		Want: classBlocked, Absent: "evaded",
	}}
}
