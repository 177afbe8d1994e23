package fakeregistry_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

func basic(user, pass string) func(*http.Request) {
	return func(q *http.Request) { q.SetBasicAuth(user, pass) }
}

func bearer(token string) func(*http.Request) {
	return func(q *http.Request) { q.Header.Set("Authorization", "Bearer "+token) }
}

// tenants are two users with a repository each.
func tenants() []fakeregistry.User {
	return []fakeregistry.User{
		{Name: "ann", Password: "a-secret", Repositories: []string{"ann/app"}, IdentityToken: "ann-refresh"},
		{Name: "bob", Password: "b-secret", Repositories: []string{"bob/app"}},
	}
}

func pushTenants(t *testing.T, r *fakeregistry.Registry) {
	t.Helper()
	for _, name := range []string{"ann/app", "bob/app", "public/app"} {
		r.Push(t, name, "v1", fakeregistry.Image{})
	}
}

func TestUsersSeeTheirOwn(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Users: tenants(), Public: []string{"public/app"}})
	pushTenants(t, r)
	for _, c := range []struct {
		repository, who, user string
		login                 func(*http.Request)
		want                  int
	}{
		{"ann/app", "ann", "ann", basic("ann", "a-secret"), 200},
		{"bob/app", "ann", "ann", basic("ann", "a-secret"), 403},
		{"bob/app", "bob", "bob", basic("bob", "b-secret"), 200},
		{"bob/app", "bob with ann's password", fakeregistry.Unknown, basic("bob", "a-secret"), 401},
		{"ann/app", "nobody", "", nil, 401},
		{"public/app", "nobody", "", nil, 200},
		{"public/app", "no name, no password", "", basic("", ""), 200},
		{"ann/app", "a token, where none is given", fakeregistry.TokenBearer, bearer(r.BearerToken()), 401},
	} {
		r.Forget()
		code, _, err := get(t, r.URL()+"/v2/"+c.repository+"/manifests/v1", c.login)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(code).To(Equal(c.want), "%s for %s", c.repository, c.who)
		g.Expect(r.Users()).To(Equal([]string{c.user}), c.who)
		all, err := json.Marshal(r.Requests())
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(all)).NotTo(ContainSubstring("-secret"), "the record holds no secret")
		g.Expect(string(all)).NotTo(ContainSubstring(r.BearerToken()))
	}
}

// fetchToken asks the token service and returns its answer.
func fetchToken(t *testing.T, r *fakeregistry.Registry, scope string, login func(*http.Request)) (string, int) {
	t.Helper()
	code, body, err := get(t, r.URL()+"/token?service=fake&scope="+url.QueryEscape(scope), login)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Token string }
	_ = json.Unmarshal(body, &answer)
	return answer.Token, code
}

func TestTokensHaveScopes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Users: tenants(), Public: []string{"public/app"}, Bearer: true})
	pushTenants(t, r)
	manifest := func(repository string, edit func(*http.Request)) int {
		code, _, err := get(t, r.URL()+"/v2/"+repository+"/manifests/v1", edit)
		g.Expect(err).NotTo(HaveOccurred())
		return code
	}
	g.Expect(manifest("public/app", nil)).To(Equal(401), "even what is public needs a token")
	_, code := fetchToken(t, r, "repository:ann/app:pull", basic("ann", "wrong"))
	g.Expect(code).To(Equal(401))

	anns, _ := fetchToken(t, r, "repository:ann/app:pull", basic("ann", "a-secret"))
	g.Expect(manifest("ann/app", bearer(anns))).To(Equal(200))
	g.Expect(manifest("bob/app", bearer(anns))).To(Equal(401))
	bobs, _ := fetchToken(t, r, "repository:ann/app:pull", basic("bob", "b-secret"))
	g.Expect(bobs).NotTo(BeEmpty(), "a token, but not for ann's repository")
	g.Expect(manifest("ann/app", bearer(bobs))).To(Equal(401))
	push, _ := fetchToken(t, r, "repository:ann/app:push", basic("ann", "a-secret"))
	g.Expect(manifest("ann/app", bearer(push))).To(Equal(401))
	anonymous, _ := fetchToken(t, r, "repository:public/app:pull", nil)
	g.Expect(manifest("public/app", bearer(anonymous))).To(Equal(200))
	g.Expect(manifest("ann/app", bearer(r.BearerToken()))).To(Equal(200))
	g.Expect(manifest("ann/app", basic("ann", "a-secret"))).To(Equal(401), "the password is for the token service")

	g.Expect(r.TokenRequests()).To(Equal(5))
	g.Expect(r.IssuedTokens()).To(ConsistOf(anns, bobs, push, anonymous))
	g.Expect(r.Users()).To(Equal([]string{"", fakeregistry.Unknown, "ann", "bob", fakeregistry.TokenBearer}))
}

func TestIdentityToken(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Users: tenants(), Bearer: true, TokenLife: time.Minute})
	pushTenants(t, r)
	for refresh, want := range map[string]int{"ann-refresh": 200, "other": 401} {
		form := url.Values{"refresh_token": {refresh}, "grant_type": {"refresh_token"}, "scope": {"repository:ann/app:pull"}}
		req, err := http.NewRequest(http.MethodPost, r.URL()+"/token", strings.NewReader(form.Encode()))
		g.Expect(err).NotTo(HaveOccurred())
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultClient.Do(req)
		g.Expect(err).NotTo(HaveOccurred())
		var answer struct {
			Token     string
			ExpiresIn int `json:"expires_in"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		g.Expect(resp.Body.Close()).To(Succeed())
		g.Expect(resp.StatusCode).To(Equal(want))
		if want == 200 {
			g.Expect(answer.ExpiresIn).To(Equal(60))
			code, _, err := get(t, r.URL()+"/v2/ann/app/manifests/v1", bearer(answer.Token))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(code).To(Equal(200))
		}
	}
	g.Expect(r.Requests()[0].Scheme).To(Equal("refresh"))
	g.Expect(r.Users()).To(ConsistOf("ann", fakeregistry.Unknown))
}

func TestTokensExpire(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{Users: tenants(), Bearer: true, TokenLife: time.Nanosecond})
	pushTenants(t, r)
	anns, _ := fetchToken(t, r, "repository:ann/app:pull", basic("ann", "a-secret"))
	code, _, err := get(t, r.URL()+"/v2/ann/app/manifests/v1", bearer(anns))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(code).To(Equal(401))
}
