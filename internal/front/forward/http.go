package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/soheilhy/cmux"
)

// serveHTTP passes each connection of the listener to the backend.
func (b *Backend) serveHTTP(ctx context.Context, listener net.Listener, log *slog.Logger) error {
	var proxies sync.WaitGroup
	defer proxies.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		proxies.Go(func() {
			if err := b.proxy(ctx, conn); err != nil {
				log.Debug("pass an HTTP connection to CRI-O", "error", err)
			}
		})
	}
}

// proxy copies both ways until both sides have ended or ctx is done.
func (b *Backend) proxy(ctx context.Context, client net.Conn) (err error) {
	defer func() { err = errors.Join(err, client.Close()) }()
	backend, err := b.dial(ctx)
	if err != nil {
		return errors.Join(err, unavailable(client, err))
	}
	stop := context.AfterFunc(ctx, func() {
		// Reads under way fail at once; the deferred Close reports errors.
		_ = client.Close()
		_ = backend.Close()
	})
	defer stop()
	defer func() { err = errors.Join(err, backend.Close()) }()

	results := make(chan error, 2)
	go func() { results <- pipe(backend, client) }()
	go func() { results <- pipe(client, backend) }()
	return errors.Join(<-results, <-results)
}

// pipe copies until src ends and tells dst so.
func pipe(dst, src net.Conn) error {
	_, err := io.Copy(dst, src)
	half := dst
	if sniffed, ok := half.(*cmux.MuxConn); ok {
		half = sniffed.Conn
	}
	if w, ok := half.(interface{ CloseWrite() error }); ok && err == nil {
		return w.CloseWrite()
	}
	// No half-close, or nobody left to copy for: end the connection.
	return errors.Join(err, dst.Close(), src.Close())
}

// unavailable answers an HTTP client while CRI-O cannot.
func unavailable(client net.Conn, reason error) error {
	text := "CRI-O does not answer: " + reason.Error() + "\n"
	_, err := fmt.Fprintf(client, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"+
		"Content-Length: %d\r\nRetry-After: 1\r\nConnection: close\r\n\r\n%s", len(text), text)
	return err
}

// dial opens a plain connection to the backend's socket.
func (b *Backend) dial(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	return dialer.DialContext(ctx, "unix", b.socket)
}
