package fakeregistry

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// defaultToken is Options.RegistryToken where that is empty.
const defaultToken = "fake-bearer-token-0123456789"

// User is somebody whom a registry knows.
type User struct {
	Name, Password string
	// IdentityToken is the user's OAuth2 refresh token; "" for none.
	IdentityToken string
	// Repositories the user may see; nil for all.
	Repositories []string
}

// grant is what a sender may do.
type grant struct {
	user         string
	all          bool
	repositories []string
	expires      time.Time // zero: never
}

func (g grant) covers(repository string) bool {
	return g.all || slices.Contains(g.repositories, repository)
}

func (u User) grant() grant {
	return grant{user: u.Name, all: u.Repositories == nil, repositories: u.Repositories}
}

// BearerToken is the token that a registry with Options.Bearer takes.
func (r *Registry) BearerToken() string { return r.opts.RegistryToken }

// IssuedTokens are the tokens that the token service gave so far, for tests that
// look for them where they must not be.
func (r *Registry) IssuedTokens() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	tokens := make([]string, 0, len(r.tokens))
	for t := range r.tokens {
		tokens = append(tokens, t)
	}
	return tokens
}

func (r *Registry) users() []User {
	if r.opts.Username == "" {
		return r.opts.Users
	}
	return append([]User{{Name: r.opts.Username, Password: r.opts.Password, IdentityToken: r.opts.IdentityToken}}, r.opts.Users...)
}

// login returns the grant of the user whom the check recognises.
func (r *Registry) login(is func(User) bool) grant {
	for _, u := range r.users() {
		if is(u) {
			return u.grant()
		}
	}
	return grant{user: Unknown}
}

// open reports whether the registry asks nobody for anything.
func (r *Registry) open() bool { return len(r.users()) == 0 && !r.opts.Bearer }

// identify says who sends a request, and by which scheme.
func (r *Registry) identify(req *http.Request) (grant, string) {
	scheme, value, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	switch scheme = strings.ToLower(scheme); scheme {
	case "":
		return r.refreshed(req)
	case "basic":
		name, pass, _ := req.BasicAuth()
		if name == "" && pass == "" { // containers/image sends this for "no credentials"
			return grant{repositories: r.opts.Public}, scheme
		}
		return r.login(func(u User) bool { return u.Name == name && u.Password == pass }), scheme
	case "bearer":
		if value == r.opts.RegistryToken {
			return grant{user: TokenBearer, all: true}, scheme
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		g, ok := r.tokens[value]
		if !ok || (!g.expires.IsZero() && time.Now().After(g.expires)) {
			return grant{user: Unknown}, scheme
		}
		return g, scheme
	}
	return grant{user: Unknown}, scheme
}

// refreshed says who sends a request without an Authorization header.
func (r *Registry) refreshed(req *http.Request) (grant, string) {
	if req.Method == http.MethodPost && req.URL.Path == tokenPath {
		// c/image sends the form without saying how long it is; 64 KiB is plenty.
		req.Body = http.MaxBytesReader(nil, req.Body, 64<<10)
		if token := req.PostFormValue("refresh_token"); token != "" {
			return r.login(func(u User) bool { return u.IdentityToken == token }), "refresh"
		}
	}
	return grant{repositories: r.opts.Public}, ""
}

// authorized reports whether the request may see what it asks for, and answers it
// if not.
func (r *Registry) authorized(w http.ResponseWriter, req *http.Request) bool {
	if r.open() {
		return true
	}
	g, scheme := r.identify(req)
	if r.opts.Bearer != (scheme == "bearer") && scheme != "" {
		g = grant{user: Unknown} // the right password in the wrong way
	}
	repository, _ := splitPath(req.URL.Path)
	switch {
	case repository == "" && (g.user != "" || r.opts.Bearer && scheme == "bearer") && g.user != Unknown,
		repository != "" && g.covers(repository) && (scheme != "" || !r.opts.Bearer):
		return true
	case g.user == "" || g.user == Unknown || r.opts.Bearer:
		r.challenge(w, repository, scheme != "" && g.user != Unknown)
	default:
		refuse(w, http.StatusForbidden, "DENIED", "requested access to the resource is denied")
	}
	return false
}

// challenge says which credentials are wanted (distribution spec, RFC 7235).
func (r *Registry) challenge(w http.ResponseWriter, repository string, known bool) {
	scheme := `Basic realm="fake"`
	if r.opts.Bearer {
		scheme = fmt.Sprintf(`Bearer realm="%s%s",service="fake"`, r.URL(), tokenPath)
		if repository != "" {
			scheme += fmt.Sprintf(`,scope="repository:%s:pull"`, repository)
		}
		if known {
			scheme += `,error="insufficient_scope"`
		}
	}
	w.Header().Set("WWW-Authenticate", scheme)
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

// refuse answers with an error as the distribution spec has it.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client that went away needs no body.
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}
