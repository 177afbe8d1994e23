package fakeregistry

import (
	"bytes"
	"net/http"
	"strings"
)

// Match chooses requests.
type Match func(*http.Request) bool

// Any matches every request.
func Any(*http.Request) bool { return true }

// Manifest matches requests for the manifest with this tag or digest; "" for any
// manifest.
func Manifest(reference string) Match { return pathPart("/manifests/", reference) }

// Blob matches requests for the blob with this digest; "" for any blob.
func Blob(digest string) Match { return pathPart("/blobs/", digest) }

func pathPart(kind, name string) Match {
	return func(r *http.Request) bool {
		_, tail, ok := strings.Cut(r.URL.Path, kind)
		return ok && (name == "" || tail == name)
	}
}

// Fault answers a request in place of an honest registry.
type Fault func(w http.ResponseWriter, req *http.Request, r *Registry)

// Status answers with a status and a body.
func Status(code int, body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ *Registry) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}
}

// Serve answers 200 with other content than was asked for.
func Serve(mediaType string, body []byte) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ *Registry) {
		w.Header().Set("Content-Type", mediaType)
		_, _ = w.Write(body)
	}
}

// Corrupt answers honestly but for one flipped bit in the middle of the body.
func Corrupt() Fault {
	return edit(func(body []byte) []byte {
		if len(body) > 0 {
			body[len(body)/2] ^= 1
		}
		return body
	})
}

// Shorten answers with all but the last n bytes, as if that were all.
func Shorten(n int) Fault {
	return edit(func(body []byte) []byte { return body[:max(0, len(body)-n)] })
}

// Lengthen appends n bytes to an honest answer.
func Lengthen(n int) Fault {
	return edit(func(body []byte) []byte { return append(body, bytes.Repeat([]byte(" "), n)...) })
}

// edit passes the body of an honest answer through fn.
func edit(fn func([]byte) []byte) Fault {
	return func(w http.ResponseWriter, req *http.Request, r *Registry) {
		answer := r.recorded(req)
		answer.Header().Del("Content-Length")
		send(w, answer, 0)
		_, _ = w.Write(fn(bytes.Clone(answer.Body.Bytes())))
	}
}

// Endless sends spaces until the client has had enough.
func Endless(mediaType string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, r *Registry) {
		w.Header().Set("Content-Type", mediaType)
		chunk := bytes.Repeat([]byte(" "), 64<<10)
		for {
			select {
			case <-r.done:
				return
			default:
			}
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
}

// Hang answers nothing until the client gives up or the registry ends.
func Hang() Fault {
	return func(_ http.ResponseWriter, req *http.Request, r *Registry) {
		select {
		case <-req.Context().Done():
		case <-r.done:
		}
	}
}

// Drop closes the connection without an answer.
func Drop() Fault {
	return func(http.ResponseWriter, *http.Request, *Registry) { panic(http.ErrAbortHandler) }
}

// Echo answers with a status and a JSON error that repeats the credentials it
// was sent, as a careless or a hostile registry may.
func Echo(code int) Fault {
	return func(w http.ResponseWriter, req *http.Request, _ *Registry) {
		user, pass, _ := req.BasicAuth()
		auth := strings.ReplaceAll(req.Header.Get("Authorization"), `"`, "")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"no, ` + user + ` with ` + pass + ` and ` + auth + `"}]}`))
	}
}
