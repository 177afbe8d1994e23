// Package fakeregistry is a registry inside the test process. It records every
// request, can ask for credentials, and can be made to lie, stall or fail.
package fakeregistry

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// Request is one request as the registry saw it.
type Request struct {
	// Method and Path of the request; Path is without the query.
	Method, Path string
	// Remote is the address that asked, host:port.
	Remote string
	// Auth is whether the request brought an Authorization header.
	Auth bool
	// Status and Bytes are what was answered.
	Status int
	Bytes  int64
}

// Options make a registry. The zero value is open to all, over plain HTTP.
type Options struct {
	// Username and Password, where set, are asked for.
	Username, Password string
	// Bearer makes the registry want a token, which its token service gives for
	// Username and Password, or for IdentityToken.
	Bearer bool
	// IdentityToken is the OAuth2 refresh token that the token service takes.
	IdentityToken string
	// Handler, where set, replaces the store of images: a registry of one's own.
	Handler http.Handler
}

// token is the bearer token that a registry with Options.Bearer takes.
const token = "fake-bearer-token-0123456789"

// Registry is a running registry.
type Registry struct {
	opts   Options
	server *httptest.Server
	images http.Handler
	done   chan struct{}

	mu       sync.Mutex
	requests []Request
	faults   []fault
}

type fault struct {
	matches Match
	serve   Fault
}

// New starts a registry that ends with the test.
func New(t testing.TB, opts Options) *Registry {
	t.Helper()
	r := &Registry{opts: opts, done: make(chan struct{})}
	if r.images = opts.Handler; r.images == nil {
		r.images = ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.server.Start()
	t.Cleanup(func() {
		close(r.done)
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// Host is the registry as it stands in a reference, "127.0.0.1:port".
func (r *Registry) Host() string { return r.server.Listener.Addr().String() }

// Stop ends the registry early: connections are refused from then on.
func (r *Registry) Stop() {
	r.server.CloseClientConnections()
	r.server.Close()
}

// BearerToken is the token that a registry with Options.Bearer takes.
func (r *Registry) BearerToken() string { return token }

// Requests returns what was asked so far, oldest first.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.requests...)
}

// Paths returns "METHOD path" of every request so far.
func (r *Registry) Paths() []string {
	requests := r.Requests()
	paths := make([]string, 0, len(requests))
	for _, q := range requests {
		paths = append(paths, q.Method+" "+q.Path)
	}
	return paths
}

// Asked reports whether any request so far named the digest in its path.
func (r *Registry) Asked(digest string) bool {
	for _, q := range r.Requests() {
		if strings.Contains(q.Path, digest) {
			return true
		}
	}
	return false
}

// Forget empties the record of requests.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
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
	counted := &countingWriter{ResponseWriter: w, status: http.StatusOK}
	i := r.record(req)
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if i < len(r.requests) {
			r.requests[i].Status, r.requests[i].Bytes = counted.status, counted.bytes
		}
	}()
	if f := r.fault(req); f != nil {
		f(counted, req, r)
		return
	}
	r.honest(counted, req)
}

// honest answers as a registry should.
func (r *Registry) honest(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == tokenPath {
		r.serveToken(w, req)
		return
	}
	if !r.authorized(req) {
		r.challenge(w)
		return
	}
	r.images.ServeHTTP(w, req)
}

func (r *Registry) record(req *http.Request) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, Request{
		Method: req.Method,
		Path:   req.URL.Path,
		Remote: req.RemoteAddr,
		Auth:   req.Header.Get("Authorization") != "",
	})
	return len(r.requests) - 1
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

type countingWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *countingWriter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (c *countingWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
