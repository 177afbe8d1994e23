package layerpull

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// pull pulls the image of a site as the site says, in a network that may not be
// trusted.
func (w *site) pull(image string, untrusted bool) error {
	g := NewWithT(w.t)
	ref, err := imageref.ParseReference(image + "@" + w.pushed.Digest.String())
	g.Expect(err).NotTo(HaveOccurred())
	_, err = Pull(w.t.Context(), ref, newStore(w.t), Config{
		AuthFile: w.path("auth.json"), PolicyPath: w.path("policy.json"), RegistriesConf: w.path("registries.conf"),
		RegistriesConfDir: w.path("registries.conf.d"), RegistriesD: w.path("registries.d"), CertsD: w.path("certs.d"),
		Credentials: w.credentials, UntrustedNetwork: untrusted,
	})
	return err
}

// TestCredentialsInAnUntrustedNetwork: the request's own credentials are the pod's, and
// are used in its network; the node's are for registries that are verified.
func TestCredentialsInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	asked := registryauth.Credentials{Username: "asked", Password: "asked-secret"}
	for name, tc := range map[string]struct {
		credentials registryauth.Credentials
		opts        fakeregistry.Options
		verified    bool
		user        string // who the registry gave the image to; "" for nobody
	}{
		"the node's, insecure":                {opts: fakeregistry.Options{Users: users()}},
		"the node's, verified":                {opts: fakeregistry.Options{Users: users()}, verified: true, user: "host"},
		"the request's, insecure":             {credentials: asked, opts: fakeregistry.Options{Users: users()}, user: "asked"},
		"the request's, insecure, bearer":     {credentials: asked, opts: fakeregistry.Options{Users: users(), Bearer: true}, user: "asked"},
		"the request's, verified":             {credentials: asked, opts: fakeregistry.Options{Users: users()}, verified: true, user: "asked"},
		"the request's identity token":        {credentials: registryauth.Credentials{IdentityToken: "asked-identity"}, opts: fakeregistry.Options{Users: users(), Bearer: true}, user: "asked"},
		"the request's registry token":        {credentials: registryauth.Credentials{RegistryToken: "token"}, opts: fakeregistry.Options{Bearer: true, RegistryToken: "token"}, user: fakeregistry.TokenBearer},
		"the request's auth field":            {credentials: registryauth.Credentials{Auth: base64.StdEncoding.EncodeToString([]byte("asked:asked-secret"))}, opts: fakeregistry.Options{Users: users()}, user: "asked"},
		"the request's are wrong, insecure":   {credentials: registryauth.Credentials{Username: "asked", Password: "wrong"}, opts: fakeregistry.Options{Users: users()}},
		"a password without a user, insecure": {credentials: registryauth.Credentials{Password: "asked-secret"}, opts: fakeregistry.Options{Users: users()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, w := NewWithT(t), newSite(t)
			if tc.verified {
				tc.opts.CA = fakeregistry.NewCA(t)
			}
			r := w.registry("main", tc.opts)
			if tc.verified {
				w.trusting(r, tc.opts.CA, nil)
			} else {
				w.conf("", r.Host(), insecureLine)
			}
			w.push(r, "app")
			w.auth(map[string]string{r.Host(): "host:host-secret"})
			w.credentials = tc.credentials
			err := w.pull(r.Host()+"/app", true)
			if tc.user == "" {
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%v", err)
				g.Expect(r.Users()).NotTo(ContainElement("host"), "it was not shown who the node is")
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(r.Users()).To(ContainElement(tc.user))
		})
	}
}

// TestNoPlainTokenServiceInAnUntrustedNetwork: a registry that is verified sends its
// clients to a token service by plain HTTP, which the tenant can listen to.
func TestNoPlainTokenServiceInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]registryauth.Credentials{"the node's": {}, "the request's": {Username: "asked", Password: "asked-secret"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, w, ca := NewWithT(t), newSite(t), fakeregistry.NewCA(t)
			r := w.registry("main", fakeregistry.Options{CA: ca, Users: users()})
			w.trusting(r, ca, nil)
			p := w.push(r, "app")
			tokens := fakeregistry.New(t, fakeregistry.Options{Users: users()})
			r.On(fakeregistry.Ping, func(rw http.ResponseWriter, _ *http.Request, _ *fakeregistry.Registry) {
				rw.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL()+`/token",service="tokens"`)
				rw.WriteHeader(http.StatusUnauthorized)
			})
			w.auth(map[string]string{r.Host(): "host:host-secret"})
			w.credentials = c
			g.Expect(w.pull(p.Repository, false)).NotTo(Succeed(), "its token is none")
			g.Expect(tokens.Users()).NotTo(BeEmpty(), "as CRI-O does, in the host's network")
			tokens.Forget()
			err := w.pull(p.Repository, true)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unsupported), "%v", err)
			g.Expect(err).To(MatchError(ContainSubstring("is not encrypted")))
			g.Expect(tokens.Requests()).To(BeEmpty())
		})
	}
}

// TestMirrorsInAnUntrustedNetwork: neither the request's credentials nor the node's reach
// an insecure mirror, whatever it asks for.
func TestMirrorsInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	for _, bearer := range []bool{false, true} {
		for name, c := range map[string]registryauth.Credentials{
			"password":       {Username: "asked", Password: "asked-secret"},
			"identity token": {IdentityToken: "asked-identity"},
			"registry token": {RegistryToken: "fake-bearer-token-0123456789"},
			"none":           {},
		} {
			t.Run(fmt.Sprintf("%s, bearer %t", name, bearer), func(t *testing.T) {
				t.Parallel()
				g, w := NewWithT(t), newSite(t)
				r, m := w.registry("main", fakeregistry.Options{}), w.registry("mirror", fakeregistry.Options{Users: users(), Bearer: bearer})
				w.conf("", r.Host(), insecureLine, mirror(m.Host()))
				w.push(r, "app")
				w.auth(map[string]string{r.Host(): "host:host-secret", m.Host(): "mirror:mirror-secret"})
				w.credentials = c
				g.Expect(w.pull(r.Host()+"/app", true)).To(Succeed())
				g.Expect(m.Requests()).NotTo(BeEmpty())
				g.Expect(m.Users()).To(Equal([]string{""}), "it was shown nobody")
				g.Expect(m.IssuedTokens()).To(BeEmpty())
			})
		}
	}
}

// TestErrorsRepeatNoCredentials: a registry says back what it was sent.
func TestErrorsRepeatNoCredentials(t *testing.T) {
	t.Parallel()
	secrets := []string{"asked-secret", "asked-identity", "given-token", base64.StdEncoding.EncodeToString([]byte("asked:asked-secret"))}
	for name, c := range map[string]registryauth.Credentials{
		"password":       {Username: "asked", Password: "asked-secret"},
		"auth":           {Auth: base64.StdEncoding.EncodeToString([]byte("asked:asked-secret"))},
		"identity token": {IdentityToken: "asked-identity"},
		"registry token": {RegistryToken: "given-token"},
		"not base64":     {Auth: "asked-secret!"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failed := 0
			for _, match := range []fakeregistry.Match{fakeregistry.Token, fakeregistry.Manifest(""), fakeregistry.Blob("")} {
				for _, bearer := range []bool{false, true} {
					g, w := NewWithT(t), newSite(t)
					r := w.open("main", fakeregistry.Options{Users: users(), Bearer: bearer})
					p := w.push(r, "app")
					r.On(match, fakeregistry.Echo(403))
					w.credentials = c
					err := w.pull(p.Repository, true)
					if err == nil {
						continue // it is asked for no token
					}
					failed++
					for _, secret := range secrets {
						g.Expect(err).To(MatchError(Not(ContainSubstring(secret))))
						g.Expect(fmt.Sprintf("%v %+v %#v", err, err, w.credentials)).NotTo(ContainSubstring(secret))
					}
				}
			}
			NewWithT(t).Expect(failed).To(BeNumerically(">=", 4))
		})
	}
}

// TestErrorsRepeatNoHelper: a credential helper that fails may have printed the secret.
func TestErrorsRepeatNoHelper(t *testing.T) {
	g, w := NewWithT(t), newSite(t)
	helpers := t.TempDir()
	script := "#!/bin/sh\necho '{\"Username\":\"u\",\"Secret\":\"helper-secret\"}'\nexit 1\n"
	g.Expect(os.WriteFile(filepath.Join(helpers, "docker-credential-leaky"), []byte(script), 0o700)).To(Succeed())
	t.Setenv("PATH", helpers+string(os.PathListSeparator)+os.Getenv("PATH"))
	r := w.open("main", fakeregistry.Options{})
	p := w.push(r, "app")
	w.authJSON(map[string]any{"credHelpers": map[string]string{r.Host(): "leaky"}})
	err := w.pull(p.Repository, false)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal), "%v", err)
	g.Expect(err).To(MatchError(And(ContainSubstring("REDACTED"), Not(ContainSubstring("helper-secret")))))
}

// TestEntryOfATag: an entry of registries.conf for one tag or digest is none of the
// pinned image's, for containers/image; it must not decide whether the network is trusted.
func TestEntryOfATag(t *testing.T) {
	t.Parallel()
	g, w := NewWithT(t), newSite(t)
	r := w.open("main", fakeregistry.Options{Users: users()})
	p := w.push(r, "app")
	w.conf("", p.Repository+"@"+p.Digest.String(), "insecure = false")
	w.auth(map[string]string{r.Host(): "host:host-secret"})
	g.Expect(w.pull(p.Repository, false)).To(Succeed())
	r.Forget()
	err := w.pull(p.Repository, true)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%v", err)
	g.Expect(r.Users()).NotTo(ContainElement("host"))
}
