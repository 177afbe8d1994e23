package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

const (
	// containersPath is where CRI-O tells cAdvisor about one container each, the one
	// HTTP answer that names images (CRI-O 1.34, server/inspect.go).
	containersPath = "/containers/"
	// maxEditedBytes bounds an answer that is held in memory to be edited. CRI-O's is
	// a container's labels and annotations: kubelet's limits keep those below it.
	maxEditedBytes = 1 << 20
	// maxHeaderBytes bounds the headers of a request and of an answer. cAdvisor's
	// and crictl's are some hundred bytes.
	maxHeaderBytes = 64 << 10
	// headerTimeout bounds the reading of a request's header, against clients that
	// send a byte now and then. Bodies, which no endpoint takes, are bounded by CRI-O's
	// own ReadTimeout; one here would end every answer that takes longer than it.
	headerTimeout = 5 * time.Second
	// clientIdle is how long cAdvisor's kept-alive connections may rest. It looks at
	// its containers at most a minute apart.
	clientIdle = 3 * time.Minute
	// backendIdle is shorter than the 5 seconds after which CRI-O closes a resting
	// connection, so that no request meets one that is just being closed.
	backendIdle = 4 * time.Second
	// answerTimeout bounds the wait for an answer's header, against a CRI-O that
	// hangs. A CPU profile takes as long as it was told to before it answers.
	answerTimeout = 2 * time.Minute
	// maxBackendConns bounds the HTTP connections to CRI-O. cAdvisor asks for every
	// container of a node at once when it starts.
	maxBackendConns = 128
	// maxIdleBackendConns is how many of them are kept for the next request.
	maxIdleBackendConns = 16
)

// EditHTTP makes the JSON of a GET that CRI-O answered with 200 true. It is called
// for /containers/<id> and no other path; path is decoded and starts with
// "/containers/", body is the whole answer, at most 1 MiB, and may be kept. What it
// returns is sent instead. Its error becomes 502 with the error's text. ctx ends
// when the client goes away.
type EditHTTP func(ctx context.Context, path string, body []byte) ([]byte, error)

// webTransport makes requests on the backend's socket.
func (b *Backend) webTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: connectTimeout}
			return dialer.DialContext(ctx, "unix", b.socket)
		},
		DisableCompression:     true, // what the client asked for is passed on
		IdleConnTimeout:        backendIdle,
		MaxConnsPerHost:        maxBackendConns,
		MaxIdleConnsPerHost:    maxIdleBackendConns,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ResponseHeaderTimeout:  answerTimeout,
	}
}

// webServer proxies HTTP/1 requests to the backend. Answers are passed on as they
// come, in both directions and whatever their size; upgraded connections too.
func (b *Backend) webServer(ctx context.Context, log *slog.Logger) *http.Server {
	errorLog := slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "crio"
			r.Out.Host = r.In.Host
			if b.edits(r.Out) {
				r.Out.Header.Del("Accept-Encoding") // what is packed cannot be edited
			}
		},
		Transport:      b.web,
		FlushInterval:  -1,
		ModifyResponse: b.editAnswer,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Debug("pass an HTTP request on to CRI-O", "method", r.Method, "path", r.URL.Path, "error", err)
			b.refuse(w, err)
		},
		ErrorLog: errorLog,
	}
	base := context.WithoutCancel(ctx) // requests under way outlast the listening
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				ctx, cancel := b.live.track(r.Context())
				defer cancel()
				upgraded(ctx)
				r = r.WithContext(ctx)
			}
			proxy.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       clientIdle,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          errorLog,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withConn,
	}
}

// edits reports whether the answer to the request is for [EditHTTP].
func (b *Backend) edits(r *http.Request) bool {
	return b.options.EditHTTP != nil && r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, containersPath)
}

// editAnswer replaces the body of an answer that is to be edited.
func (b *Backend) editAnswer(answer *http.Response) error {
	if !b.edits(answer.Request) || answer.StatusCode != http.StatusOK {
		return nil
	}
	if packed := answer.Header.Get("Content-Encoding"); packed != "" {
		return fmt.Errorf("CRI-O's answer is encoded as %s, which nobody asked for", packed)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxEditedBytes+1))
	if err != nil {
		return fmt.Errorf("read CRI-O's answer: %w", err)
	}
	if len(body) > maxEditedBytes {
		return fmt.Errorf("CRI-O's answer has more than %d bytes", maxEditedBytes)
	}
	edited, err := b.options.EditHTTP(answer.Request.Context(), answer.Request.URL.Path, body)
	if err != nil {
		return fmt.Errorf("correct CRI-O's answer: %w", err)
	}
	if err := answer.Body.Close(); err != nil {
		return fmt.Errorf("read CRI-O's answer: %w", err)
	}
	answer.Body = io.NopCloser(bytes.NewReader(edited))
	answer.ContentLength, answer.TransferEncoding = int64(len(edited)), nil
	answer.Header.Set("Content-Length", strconv.Itoa(len(edited)))
	return nil
}

// refuse answers an HTTP client when CRI-O has not, or not rightly.
func (b *Backend) refuse(w http.ResponseWriter, err error) {
	code, text := http.StatusBadGateway, err.Error()
	var network *net.OpError
	var slow net.Error
	switch {
	case errors.As(err, &network) && network.Op == "dial":
		code, text = http.StatusServiceUnavailable, b.silent()+": "+err.Error()
		w.Header().Set("Retry-After", "1")
	case errors.As(err, &slow) && slow.Timeout():
		code, text = http.StatusGatewayTimeout, b.silent()+": "+err.Error()
	}
	http.Error(w, text, code)
}
