package registryauth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"testing"

	"github.com/containers/image/v5/types"
	. "github.com/onsi/gomega"
)

func TestCredentialsPrintNoSecret(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := Credentials{
		Username: "alice", Password: "hunter2", IdentityToken: "refresh-secret", RegistryToken: "bearer-secret",
		Auth: base64.StdEncoding.EncodeToString([]byte("bob:auth-secret")),
	}
	asJSON, err := json.Marshal(map[string]any{"c": c, "p": &c})
	g.Expect(err).NotTo(HaveOccurred())
	req := struct {
		Name        string
		Credentials Credentials
	}{"x", c}
	printed := fmt.Sprintf("%v %+v %#v %s %q %d %x %v %+v %#v %s", c, c, c, c, c, c, c, &c, req, req, asJSON)
	for _, secret := range []string{"hunter2", "refresh-secret", "bearer-secret", c.Auth, "auth-secret", fmt.Sprintf("%x", "hunter2")} {
		g.Expect(printed).NotTo(ContainSubstring(secret))
	}
	g.Expect(c.String()).To(ContainSubstring("identity-token"))
	g.Expect(Credentials{}.String()).To(Equal("credentials(none)"))

	cause := errors.New("server said: hunter2, auth-secret, " + c.Auth + ", refresh-secret")
	scrubbed := c.Scrub(cause)
	for _, secret := range []string{"hunter2", "refresh-secret", c.Auth, "auth-secret"} {
		g.Expect(scrubbed.Error()).NotTo(ContainSubstring(secret))
	}
	g.Expect(errors.Is(scrubbed, cause)).To(BeTrue(), "the types behind it stay")
	odd := Credentials{Username: "u", Password: "a\"b c/d\\e"}
	for _, form := range []string{"%s", "%q"} {
		for _, said := range []string{odd.Password, url.QueryEscape(odd.Password), url.PathEscape(odd.Password)} {
			g.Expect(odd.Scrub(fmt.Errorf("server said "+form, said)).Error()).To(MatchRegexp(`^server said "?REDACTED"?$`))
		}
	}
	g.Expect(c.Scrub(nil)).To(Succeed())
	clean := errors.New("nothing to hide")
	g.Expect(c.Scrub(clean)).To(BeIdenticalTo(clean))
}

func TestCredentialsPair(t *testing.T) {
	t.Parallel()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, c := range map[string]struct {
		in         Credentials
		user, pass string
		fails      bool
	}{
		"pair":       {Credentials{Username: "u", Password: "p"}, "u", "p", false},
		"auth wins":  {Credentials{Username: "u", Password: "p", Auth: b64("a:b:c")}, "a", "b:c", false},
		"padded":     {Credentials{Auth: b64("a:b\x00\x00")}, "a", "b", false},
		"none":       {Credentials{}, "", "", false},
		"not base64": {Credentials{Auth: "!secret!"}, "", "", true},
		"no colon":   {Credentials{Username: "u", Auth: b64("secret")}, "", "", false},
	} {
		g := NewWithT(t)
		user, pass, err := c.in.Pair()
		g.Expect(err != nil).To(Equal(c.fails), name)
		g.Expect([]string{user, pass}).To(Equal([]string{c.user, c.pass}), name)
		if err != nil {
			g.Expect(err.Error()).NotTo(ContainSubstring("secret"))
		}
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in     Credentials
		auth   *types.DockerAuthConfig
		bearer string
	}{
		"none":               {},
		"pair":               {Credentials{Username: "u", Password: "p"}, &types.DockerAuthConfig{Username: "u", Password: "p"}, ""},
		"password alone":     {Credentials{Password: "p"}, nil, ""},
		"identity":           {Credentials{IdentityToken: "i"}, &types.DockerAuthConfig{IdentityToken: "i"}, ""},
		"token, not mirrors": {Credentials{RegistryToken: "r"}, &types.DockerAuthConfig{}, "r"},
	} {
		g := NewWithT(t)
		sys := &types.SystemContext{}
		g.Expect(c.in.Apply(sys)).To(Succeed(), name)
		g.Expect(sys.DockerAuthConfig).To(Equal(c.auth), name)
		g.Expect(sys.DockerBearerRegistryToken).To(Equal(c.bearer), name)
	}
	g := NewWithT(t)
	err := Credentials{Auth: "!secret!"}.Apply(&types.SystemContext{})
	g.Expect(err).To(MatchError(Not(ContainSubstring("secret"))))
}

func TestOpenIsForPipes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := Credentials{Username: "u", Password: "p", RegistryToken: "r"}
	data, err := json.Marshal(Open(c))
	g.Expect(err).NotTo(HaveOccurred())
	var back Open
	g.Expect(json.Unmarshal(data, &back)).To(Succeed())
	g.Expect(Credentials(back)).To(Equal(c))
}
