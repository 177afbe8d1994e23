package fakeregistry

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

const tokenPath = "/token"

// serveToken trades a password (GET) or a refresh token (POST) for a token, of
// the repositories in the scopes that the user may see.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	g, _ := r.identify(req)
	if g.user == Unknown || g.user == "" && len(r.opts.Public) == 0 {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "no token for you")
		return
	}
	scopes := req.URL.Query()["scope"]
	if req.Method == http.MethodPost {
		scopes = append(scopes, req.PostForm["scope"]...)
	}
	granted := grant{user: g.user}
	for _, scope := range scopes {
		kind, rest, _ := strings.Cut(scope, ":")
		end := strings.LastIndex(rest, ":")
		if kind != "repository" || end < 0 || !slices.Contains(strings.Split(rest[end+1:], ","), "pull") {
			continue
		}
		if name := rest[:end]; g.covers(name) {
			granted.repositories = append(granted.repositories, name)
		}
	}
	expiry := ""
	if r.opts.TokenLife > 0 {
		granted.expires = time.Now().Add(r.opts.TokenLife)
		expiry = fmt.Sprintf(`,"expires_in":%d`, int(r.opts.TokenLife.Seconds()))
	}
	token := "fake-token-" + rand.Text()
	r.mu.Lock()
	r.tokens[token] = granted
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"token":%q,"access_token":%q%s}`, token, token, expiry)
}
