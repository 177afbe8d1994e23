package fakeregistry

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// Request is one request as the registry saw it. It holds no secret: not the
// Authorization header, not the form of a token request.
type Request struct {
	// Method and Path of the request; Path is without the query.
	Method, Path string
	// Query is the request's query.
	Query url.Values
	// Host is the host that was asked for.
	Host string
	// Header is the request's header, without Authorization and cookies.
	Header http.Header
	// Remote is the address that asked, host:port.
	Remote string
	// Conn numbers the connection, from 1: equal numbers mean a reused connection.
	Conn int
	// ClientCert is the common name in the client's certificate; "" for none.
	ClientCert string
	// Auth is whether the request brought an Authorization header.
	Auth bool
	// Scheme is that of the Authorization header, "basic" or "bearer", or
	// "refresh" for a token request with an identity token; "" for none.
	Scheme string
	// User is who asked: the user of the right password, or to whom the token was
	// given. "" is nobody, [Unknown] somebody with credentials that are not right.
	User string
	// Status and Bytes are what was answered; 0 where nothing was.
	Status int
	Bytes  int64
}

// Names in Request.User that are no user's.
const (
	// Unknown is the sender of wrong credentials.
	Unknown = "(unknown)"
	// TokenBearer is the sender of Options.RegistryToken.
	TokenBearer = "(registry token)"
)

// Requests returns what was asked so far, oldest first.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests := make([]Request, 0, len(r.requests))
	for _, q := range r.requests {
		requests = append(requests, *q)
	}
	return requests
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

// Count returns how many requests so far had that method and a path with that
// part; "" stands for any.
func (r *Registry) Count(method, part string) int {
	n := 0
	for _, q := range r.Requests() {
		if (method == "" || q.Method == method) && strings.Contains(q.Path, part) {
			n++
		}
	}
	return n
}

// TokenRequests returns how often the token service was asked so far.
func (r *Registry) TokenRequests() int { return r.Count("", tokenPath) }

// Users returns who asked so far, each once, in order of appearance; nobody is "".
func (r *Registry) Users() []string {
	users, seen := []string{}, map[string]bool{}
	for _, q := range r.Requests() {
		if !seen[q.User] {
			seen[q.User] = true
			users = append(users, q.User)
		}
	}
	return users
}

// Connections returns how many connections were made so far, also those on which
// nothing was asked.
func (r *Registry) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

// Asked reports whether any request so far named the digest in its path.
func (r *Registry) Asked(digest string) bool { return r.Count("", digest) > 0 }

// Forget empties the record of requests.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

type connKey struct{}

// connected numbers a new connection.
func (r *Registry) connected(ctx context.Context, _ net.Conn) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns++
	return context.WithValue(ctx, connKey{}, r.conns)
}

func (r *Registry) record(req *http.Request) *Request {
	q := &Request{
		Method: req.Method,
		Path:   req.URL.Path,
		Query:  req.URL.Query(),
		Host:   req.Host,
		Header: req.Header.Clone(),
		Remote: req.RemoteAddr,
		Auth:   req.Header.Get("Authorization") != "",
	}
	q.Header.Del("Authorization")
	q.Header.Del("Cookie")
	q.Conn, _ = req.Context().Value(connKey{}).(int)
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		q.ClientCert = req.TLS.PeerCertificates[0].Subject.CommonName
	}
	var asker grant
	asker, q.Scheme = r.identify(req)
	q.User = asker.user
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, q)
	return q
}

// answered completes a record. A handler that returned without a word has answered
// 200, unless nobody listened any more.
func (r *Registry) answered(q *Request, silent int) {
	r.mu.Lock()
	if q.Status == 0 {
		q.Status = silent
	}
	done := *q
	r.mu.Unlock()
	if r.opts.Log != nil {
		r.opts.Log(done)
	}
}

// recordingWriter writes down what is answered before the client can see it.
type recordingWriter struct {
	http.ResponseWriter
	registry *Registry
	request  *Request
}

func (w *recordingWriter) note(status int, bytes int64) {
	w.registry.mu.Lock()
	defer w.registry.mu.Unlock()
	if w.request.Status == 0 {
		w.request.Status = status
	}
	w.request.Bytes += bytes
}

func (w *recordingWriter) WriteHeader(status int) {
	w.note(status, 0)
	w.ResponseWriter.WriteHeader(status)
}

func (w *recordingWriter) Write(b []byte) (int, error) {
	w.note(http.StatusOK, int64(len(b)))
	n, err := w.ResponseWriter.Write(b)
	w.note(http.StatusOK, int64(n-len(b)))
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recordingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
