package fakeregistry

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"time"
)

// Token matches requests for the token service.
func Token(r *http.Request) bool { return r.URL.Path == tokenPath }

// Ping matches the request by which a client finds out what the registry wants.
func Ping(r *http.Request) bool { return r.URL.Path == "/v2/" }

// Lookaside matches requests for the lookaside storage.
func Lookaside(r *http.Request) bool { return pathPart(lookasidePath, "")(r) }

// Times serves a fault n times and is honest from then on.
func Times(n int, f Fault) Fault {
	faults := make([]Fault, n)
	for i := range faults {
		faults[i] = f
	}
	return Sequence(faults...)
}

// Sequence serves one fault after the other and is honest from then on.
func Sequence(faults ...Fault) Fault {
	var next atomic.Int64
	return func(w http.ResponseWriter, req *http.Request, r *Registry) {
		if i := next.Add(1) - 1; i < int64(len(faults)) {
			faults[i](w, req, r)
			return
		}
		r.honest(w, req)
	}
}

// TooMany answers 429 with a Retry-After of that value, in seconds or a date; ""
// leaves the header out.
func TooMany(retryAfter string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ *Registry) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "too many requests")
	}
}

// Big answers with size bytes of spaces: an oversized manifest, config or error.
func Big(status int, mediaType string, size int64) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ *Registry) {
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		w.WriteHeader(status)
		chunk := bytes.Repeat([]byte(" "), 64<<10)
		for left := size; left > 0; {
			n, err := w.Write(chunk[:min(left, int64(len(chunk)))])
			if err != nil {
				return
			}
			left -= int64(n)
		}
	}
}

// Header answers honestly but for one header, such as Content-Type,
// Content-Length or Docker-Content-Digest.
func Header(name, value string) Fault {
	return func(w http.ResponseWriter, req *http.Request, r *Registry) {
		answer := r.recorded(req)
		answer.Header().Set(name, value)
		send(w, answer, answer.Body.Len())
	}
}

// Redirect sends the client to the same path of another server.
func Redirect(base string) Fault {
	return func(w http.ResponseWriter, req *http.Request, _ *Registry) {
		http.Redirect(w, req, base+req.URL.RequestURI(), http.StatusTemporaryRedirect)
	}
}

// CutHeaders closes the connection in the middle of the answer's headers.
func CutHeaders() Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ *Registry) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err) // HTTP/1.1 connections can be hijacked
		}
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Type: appl"))
		_ = conn.Close()
	}
}

// CutBody closes the connection after n bytes of an honest body.
func CutBody(n int) Fault {
	return func(w http.ResponseWriter, req *http.Request, r *Registry) {
		answer := r.recorded(req)
		answer.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
		send(w, answer, min(n, answer.Body.Len()))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// Drip sends an honest body one byte at a time, as a slow-loris registry does.
func Drip(pause time.Duration) Fault {
	return func(w http.ResponseWriter, req *http.Request, r *Registry) {
		answer := r.recorded(req)
		answer.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
		body := answer.Body.Bytes()
		send(w, answer, 0)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for i := range body {
			select {
			case <-tick.C:
			case <-req.Context().Done():
				return
			case <-r.done:
				return
			}
			if _, err := w.Write(body[i : i+1]); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// Gate lets requests through when told to: a test waits until they have come.
type Gate struct {
	arrived chan struct{}
	opened  chan struct{}
}

// gateQueue is how many requests a Gate can count before a test looks.
const gateQueue = 1024

// NewGate makes a closed gate.
func NewGate() *Gate {
	return &Gate{arrived: make(chan struct{}, gateQueue), opened: make(chan struct{})}
}

// Arrived receives once for every request that stands at the gate.
func (g *Gate) Arrived() <-chan struct{} { return g.arrived }

// Open lets all requests through, for good.
func (g *Gate) Open() { close(g.opened) }

// Fault holds a request until the gate is opened, then answers honestly.
func (g *Gate) Fault() Fault {
	return func(w http.ResponseWriter, req *http.Request, r *Registry) {
		g.arrived <- struct{}{}
		select {
		case <-g.opened:
			r.honest(w, req)
		case <-req.Context().Done():
		case <-r.done:
		}
	}
}

// recorded is an honest answer that was not sent yet.
func (r *Registry) recorded(req *http.Request) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	r.honest(answer, req)
	return answer
}

// send sends an answer's header and the first n bytes of its body.
func send(w http.ResponseWriter, answer *httptest.ResponseRecorder, n int) {
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()[:n])
}
