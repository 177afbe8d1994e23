package layerpull

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containers/image/v5/copy"
	"github.com/containers/image/v5/directory"
	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/registryerr"
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// The comparison with containers/image: each case is a set of registries and
// configuration files, from which one image is pulled twice, by [Pull] and by
// copy.Image, which is what skopeo, podman and CRI-O do. Outcome and requests, with who
// was asked as whom, must be the same, but for [deliberate].

// ok is the outcome of a pull that succeeds; all others are names of kinds.
const ok = "ok"

// comparison is one case.
type comparison struct {
	name string
	// arrange makes the registries and files, and returns the image, without a digest
	// if it is the one that was pushed last.
	arrange func(w *site) string
	// want is the outcome of containers/image.
	want string
	// from is the registry that gives the manifest, and user as whom; "" where the
	// case is not about that.
	from, user string
	// private are registries that must see no credentials, of neither.
	private []string
}

// difference is where Pull is meant to do something else than containers/image.
type difference struct {
	// why is the reason.
	why string
	// want is Pull's outcome; "" for the same.
	want string
	// requests says that what is asked differs.
	requests bool
}

// deliberate are all of the differences. One that does not occur fails the test, as one
// that is not here does.
func deliberate() map[string]difference {
	return map[string]difference{
		"blocked: another location": {
			why: "containers/image looks for blocked = true under the location's name alone; containers-registries.conf(5) says " +
				"that images with the prefix are not pulled",
			want: errdefs.Unsupported.String(), requests: true,
		},
		"blocked: with a mirror":      {why: "as above", want: errdefs.Unsupported.String(), requests: true},
		"images: nested index":        {why: "containers/image does not look into an index of an index; up to 3 levels are read here, as on the host", want: ok, requests: true},
		"images: artifact":            {why: "no container runs from an artifact", want: errdefs.NotAnImage.String(), requests: true},
		"images: schema 1":            {why: "schema 1 names no config, and so has no image ID that a digest covers", want: errdefs.NotAnImage.String(), requests: true},
		"images: sha512":              {why: "only sha256 is supported, as on the host", want: errdefs.Unsupported.String(), requests: true},
		"images: wrong diff ID":       {why: "a copy does not look into layers; what is unpacked is checked", want: errdefs.DigestMismatch.String()},
		"images: wrong size":          {why: "containers/image does not compare", want: errdefs.DigestMismatch.String()},
		"images: foreign layer":       {why: "a layer comes from its registry or not at all", want: errdefs.Unsupported.String(), requests: true},
		"images: another OS":          {why: "containers/image takes any platform of an image that is no index", want: errdefs.NoPlatform.String(), requests: true},
		"faults: layer 502":           {why: "a blob is asked for again, 3 times", requests: true},
		"faults: wrong config":        {why: "the config is read before the layers", requests: true},
		"mirrors: without the config": {why: "as above", requests: true},
	}
}

// result is what came of one pull.
type result struct {
	outcome  string
	err      error
	requests []string
	seen     []request
}

// request is a request at a registry of the site.
type request struct {
	registry string
	fakeregistry.Request
}

// String is the request as it is compared: without connections and times.
func (r request) String() string {
	s := fmt.Sprintf("%s: %s %s", r.registry, r.Method, r.Path)
	if len(r.Query["scope"]) > 0 {
		s += " scope=" + strings.Join(r.Query["scope"], ",")
	}
	return fmt.Sprintf("%s = %d, auth=%t %s %q cert=%q", s, r.Status, r.Auth, r.Scheme, r.User, r.ClientCert)
}

// collect returns what the registries were asked, sorted.
func (w *site) collect() (seen []request) {
	for name, r := range w.registries {
		for _, q := range r.Requests() {
			seen = append(seen, request{name, q})
		}
	}
	slices.SortStableFunc(seen, func(a, b request) int { return strings.Compare(a.String(), b.String()) })
	return seen
}

// observe pulls, and returns what came of it.
func (w *site) observe(kindOf func(error) errdefs.Kind, pull func(context.Context) error) result {
	for _, r := range w.registries {
		r.Forget()
	}
	r := result{outcome: ok, err: pull(w.t.Context())}
	if r.err != nil {
		r.outcome = kindOf(r.err).String()
	}
	r.seen = w.collect()
	for _, q := range r.seen {
		r.requests = append(r.requests, q.String())
	}
	return r
}

// husk pulls into a store.
func (w *site) husk(image string) result {
	return w.observe(errdefs.KindOf, func(ctx context.Context) error {
		ref, err := imageref.ParseReference(image)
		if err != nil {
			return err
		}
		store, err := OpenStore(w.t.TempDir())
		if err != nil {
			return err
		}
		_, err = Pull(ctx, ref, store, Config{
			AuthFile: w.path("auth.json"), PolicyPath: w.path("policy.json"),
			RegistriesConf: w.path("registries.conf"), RegistriesConfDir: w.path("registries.conf.d"),
			RegistriesD: w.path("registries.d"), CertsD: w.path("certs.d"), Credentials: w.credentials,
		})
		return err
	})
}

// theirs copies into a directory, without the signatures, which a pull has no use for.
func (w *site) theirs(image string) result {
	return w.observe(theirKind, func(ctx context.Context) error {
		sys := &types.SystemContext{
			AuthFilePath: w.path("auth.json"), SignaturePolicyPath: w.path("policy.json"),
			SystemRegistriesConfPath: w.path("registries.conf"), SystemRegistriesConfDirPath: w.path("registries.conf.d"),
			RegistriesDirPath: w.path("registries.d"), DockerPerHostCertDirPath: w.path("certs.d"),
			BlobInfoCacheDir: w.path("cache"),
		}
		if c := w.credentials; !c.IsZero() {
			sys.DockerAuthConfig = &types.DockerAuthConfig{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken}
			sys.DockerBearerRegistryToken = c.RegistryToken
		}
		from, err := docker.ParseReference("//" + image)
		if err != nil {
			return err
		}
		to, err := directory.NewReference(w.t.TempDir())
		if err != nil {
			return err
		}
		rules, err := signature.DefaultPolicy(sys)
		if err != nil {
			return err
		}
		policy, err := signature.NewPolicyContext(rules)
		if err != nil {
			return err
		}
		_, err = copy.Image(ctx, policy, to, from, &copy.Options{SourceCtx: sys, DestinationCtx: sys, RemoveSignatures: true})
		return err
	})
}

// theirKind is the kind of an error of copy.Image, of which some have no type.
func theirKind(err error) errdefs.Kind {
	for _, known := range []struct {
		text string
		kind errdefs.Kind
	}{
		{"is blocked in ", errdefs.Unsupported},
		{"Digest did not match", errdefs.DigestMismatch},
		{"does not match expected sha256:", errdefs.DigestMismatch},
		{"does not match provided manifest digest", errdefs.DigestMismatch},
		{"manifest digest does not match", errdefs.DigestMismatch},
		{"Digest mismatch", errdefs.DigestMismatch},
		{"digest mismatch", errdefs.DigestMismatch},
		{"no image found in ", errdefs.NoPlatform},
		{"unsupported schema version", errdefs.NotAnImage},
	} {
		if strings.Contains(err.Error(), known.text) {
			return known.kind
		}
	}
	return registryerr.Kind(err)
}

// check compares what both did, and with what the case wants.
func (c comparison) check(t *testing.T, husk, theirs result) {
	t.Helper()
	g := NewWithT(t)
	d, differs := deliberate()[c.name]
	want := c.want
	if d.want != "" {
		want = d.want
	}
	g.Expect(theirs.outcome).To(Equal(c.want), "containers/image: %v", theirs.err)
	g.Expect(husk.outcome).To(Equal(want), "husk: %v", husk.err)
	if d.requests {
		g.Expect(husk.requests).NotTo(Equal(theirs.requests), "the difference does not occur: %s", d.why)
	} else {
		g.Expect(husk.requests).To(Equal(theirs.requests))
	}
	if differs {
		g.Expect(d.requests || d.want != c.want).To(BeTrue(), "a difference that is none")
	}
	for who, r := range map[string]result{"husk": husk, "containers/image": theirs} {
		if c.from != "" && r.outcome == ok {
			from, user := answered(r.seen)
			g.Expect(from).To(Equal(c.from), "where %s got the manifest", who)
			g.Expect(user).To(Equal(c.user), "who %s was", who)
		}
		for _, q := range r.seen {
			if slices.Contains(c.private, q.registry) {
				g.Expect(q.Scheme == "refresh" || q.User != "").To(BeFalse(), "%s sent credentials: %s", who, q)
			}
		}
	}
}

// answered is the registry that served the manifest, and as whom it was asked.
func answered(seen []request) (registry, user string) {
	for _, q := range seen {
		if strings.Contains(q.Path, "/manifests/") && !strings.HasSuffix(q.Path, ".sig") && q.Status == 200 {
			return q.registry, q.User
		}
	}
	return "", ""
}

func TestCompareWithContainersImage(t *testing.T) {
	helpers := t.TempDir()
	NewWithT(t).Expect(os.WriteFile(filepath.Join(helpers, "docker-credential-"+helperName), []byte(helperScript), 0o700)).To(Succeed())
	t.Setenv("PATH", helpers+string(os.PathListSeparator)+os.Getenv("PATH"))
	listed := deliberate()
	names := map[string]bool{}
	for topic, cases := range map[string][]comparison{
		"transport": transportComparisons(), "mirrors": mirrorComparisons(), "blocked": blockedComparisons(), "names": nameComparisons(),
		"auth": authComparisons(), "request": requestComparisons(), "policy": policyComparisons(t), "images": imageComparisons(),
		"faults": faultComparisons(), "files": fileComparisons(),
	} {
		for _, c := range cases {
			c.name = topic + ": " + c.name
			NewWithT(t).Expect(names[c.name]).To(BeFalse(), "two cases %s", c.name)
			names[c.name] = true
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				w := newSite(t)
				image := c.arrange(w)
				if !strings.Contains(image, "@") {
					image += "@" + w.pushed.Digest.String()
				}
				husk := w.husk(image)
				c.check(t, husk, w.theirs(image))
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		NewWithT(t).Expect(names[name]).To(BeTrue(), "a difference of no case: %s", name)
	}
}
