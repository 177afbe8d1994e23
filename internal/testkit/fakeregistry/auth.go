package fakeregistry

import (
	"fmt"
	"net/http"
)

const tokenPath = "/token"

// authorized reports whether the request may see images.
func (r *Registry) authorized(req *http.Request) bool {
	switch {
	case r.opts.Bearer:
		return req.Header.Get("Authorization") == "Bearer "+token
	case r.opts.Username != "":
		user, pass, _ := req.BasicAuth()
		return user == r.opts.Username && pass == r.opts.Password
	default:
		return true
	}
}

// challenge says which credentials are wanted (distribution spec, RFC 7235).
func (r *Registry) challenge(w http.ResponseWriter) {
	scheme := `Basic realm="fake"`
	if r.opts.Bearer {
		scheme = fmt.Sprintf(`Bearer realm="http://%s%s",service="fake"`, r.Host(), tokenPath)
	}
	w.Header().Set("WWW-Authenticate", scheme)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	// The client that went away needs no body.
	_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`))
}

// serveToken trades a password (GET) or a refresh token (POST) for a token.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	ok := false
	if req.Method == http.MethodPost {
		// c/image sends the form without saying how long it is; 64 KiB is plenty.
		req.Body = http.MaxBytesReader(w, req.Body, 64<<10)
		ok = r.opts.IdentityToken != "" && req.PostFormValue("refresh_token") == r.opts.IdentityToken
	} else if user, pass, given := req.BasicAuth(); given {
		ok = user == r.opts.Username && pass == r.opts.Password
	}
	if !ok {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no token for you"}]}`, http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"token":%q,"access_token":%q}`, token, token)
}
