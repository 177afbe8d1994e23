package layerpull

import (
	"encoding/base64"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// TestCredentialsAreScrubbed: what a registry repeats of the request's credentials is in
// no error.
func TestCredentialsAreScrubbed(t *testing.T) {
	t.Parallel()
	r := fakeregistry.New(t, fakeregistry.Options{Username: "asked", Password: "hunter2-secret"})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	ref, err := imageref.ParseReference(p.Repository + "@" + p.Digest.String())
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	secret := base64.StdEncoding.EncodeToString([]byte("asked:hunter2-secret"))
	for name, c := range map[string]registryauth.Credentials{
		"pair": {Username: "asked", Password: "hunter2-secret"}, "auth": {Auth: secret},
	} {
		for what, match := range map[string]fakeregistry.Match{"manifest": fakeregistry.Manifest(""), "config": fakeregistry.Blob("")} {
			g, store := NewWithT(t), newStore(t)
			r.Heal()
			r.On(match, fakeregistry.Echo(403))
			cfg := (&testRegistry{host: r.Host()}).config(t)
			cfg.Credentials = c
			_, err := Pull(t.Context(), ref, store, cfg)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%s, %s: %v", name, what, err)
			g.Expect(err).To(MatchError(And(ContainSubstring("REDACTED"), Not(ContainSubstring("hunter2")), Not(ContainSubstring(secret)))), "%s, %s", name, what)
			expectEmpty(t, store)
		}
	}
}
