// Package fakeregistry is a registry inside the test process. It records every
// request, can ask for credentials, and can be made to lie, stall or fail. It
// also serves signatures, as lookaside storage and as sigstore attachments.
package fakeregistry

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// Options make a registry. The zero value is open to all, over plain HTTP.
type Options struct {
	// Listen is the address, "ip:port"; "" is a free port of 127.0.0.1.
	Listen string
	// CA, where set, makes the registry speak TLS with a certificate of this CA.
	CA *CA
	// ClientCA, where set, makes it want a client certificate of that CA. It needs CA.
	ClientCA *CA

	// Username and Password, where set, are a user who may see every repository.
	Username, Password string
	// IdentityToken is the OAuth2 refresh token of that user.
	IdentityToken string
	// Users are further users, each with repositories of their own.
	Users []User
	// Public are repositories that need no credentials, where others do.
	Public []string
	// Bearer makes the registry want a token, which its token service gives for
	// a password or an identity token. Else it wants the password itself.
	Bearer bool
	// RegistryToken is a token that a registry with Bearer takes, whoever sends
	// it; "" is a fixed one, see [Registry.BearerToken].
	RegistryToken string
	// TokenLife is how long the token service's tokens are valid; 0 for ever,
	// which clients are then not told.
	TokenLife time.Duration

	// Mirror, where set, names the repository that is served in place of the one
	// asked for; ns is the request's ?ns=. An empty name is answered with 404.
	Mirror func(repository, ns string) string
	// Handler, where set, replaces the store of images: a registry of one's own.
	Handler http.Handler
	// Log, where set, is told every request when it has been answered, also from
	// several goroutines at once.
	Log func(Request)
}

// Registry is a running registry.
type Registry struct {
	opts   Options
	server *httptest.Server
	images http.Handler
	done   chan struct{}

	mu         sync.Mutex
	requests   []*Request
	faults     []fault
	tokens     map[string]grant
	signatures map[string][]byte
	conns      int
}

type fault struct {
	matches Match
	serve   Fault
}

// New starts a registry that ends with the test.
func New(t TB, opts Options) *Registry {
	t.Helper()
	r := &Registry{opts: opts, done: make(chan struct{}), tokens: map[string]grant{}, signatures: map[string][]byte{}}
	if r.opts.RegistryToken == "" {
		r.opts.RegistryToken = defaultToken
	}
	if r.images = opts.Handler; r.images == nil {
		r.images = ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.server.Config.ConnContext = r.connected
	if opts.Listen != "" {
		r.listen(t)
	}
	if opts.CA != nil {
		r.server.TLS = opts.CA.server(t, r.server.Listener.Addr(), opts.ClientCA)
		r.server.StartTLS()
	} else {
		r.server.Start()
	}
	t.Cleanup(func() {
		close(r.done)
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// listen replaces the listener that httptest chose.
func (r *Registry) listen(t TB) {
	t.Helper()
	address, err := net.ResolveTCPAddr("tcp", r.opts.Listen)
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	listener, err := net.ListenTCP("tcp", address)
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	_ = r.server.Listener.Close()
	r.server.Listener = listener
}

// Host is the registry as it stands in a reference, "127.0.0.1:port".
func (r *Registry) Host() string { return r.server.Listener.Addr().String() }

// URL is the registry's base, "http://host" or "https://host".
func (r *Registry) URL() string {
	if r.opts.CA != nil {
		return "https://" + r.Host()
	}
	return "http://" + r.Host()
}

// Stop ends the registry early: connections are refused from then on.
func (r *Registry) Stop() {
	r.server.CloseClientConnections()
	r.server.Close()
}

// On makes the registry answer the requests that match with a fault. The last
// one added that matches wins.
func (r *Registry) On(m Match, f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, fault{m, f})
}

// Heal removes every fault.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	q, silent := r.record(req), 0
	defer func() { r.answered(q, silent) }()
	w = &recordingWriter{w, r, q}
	if f := r.fault(req); f != nil {
		f(w, req, r)
	} else {
		r.honest(w, req)
	}
	if req.Context().Err() == nil {
		silent = http.StatusOK
	}
}

// honest answers as a registry should.
func (r *Registry) honest(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.URL.Path == tokenPath:
		r.serveToken(w, req)
	case strings.HasPrefix(req.URL.Path, lookasidePath):
		r.serveSignature(w, req)
	case r.authorized(w, req):
		r.serveImage(w, req)
	}
}

// serveImage answers from the store, under the name that Options.Mirror gives.
func (r *Registry) serveImage(w http.ResponseWriter, req *http.Request) {
	asked, rest := splitPath(req.URL.Path)
	if r.opts.Mirror == nil || asked == "" {
		r.images.ServeHTTP(w, req)
		return
	}
	name := r.opts.Mirror(asked, req.URL.Query().Get("ns"))
	if name == "" {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "no such repository")
		return
	}
	renamed := req.Clone(req.Context())
	renamed.URL.Path = "/v2/" + name + rest
	r.images.ServeHTTP(w, renamed)
}

// splitPath splits "/v2/<repository>/manifests/x" before "/manifests/x"; the
// repository is empty for a path that names none.
func splitPath(path string) (repository, rest string) {
	tail, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", path
	}
	for _, kind := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(tail, kind); i > 0 {
			return tail[:i], tail[i:]
		}
	}
	return "", path
}

func (r *Registry) fault(req *http.Request) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.faults) - 1; i >= 0; i-- {
		if r.faults[i].matches(req) {
			return r.faults[i].serve
		}
	}
	return nil
}

// PathPrefix is an Options.Mirror that serves repositories below a prefix of the
// path: with "cache/hub", "cache/hub/team/app" is served from "team/app".
func PathPrefix(prefix string) func(repository, ns string) string {
	return func(repository, _ string) string {
		name, ok := strings.CutPrefix(repository, prefix+"/")
		if !ok {
			return ""
		}
		return name
	}
}

// NamespaceQuery is an Options.Mirror that serves "<ns>/<repository>", as mirrors
// of several registries do that are asked with ?ns=.
func NamespaceQuery(repository, ns string) string {
	if ns == "" {
		return ""
	}
	return ns + "/" + repository
}
