package metrics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// socketMode lets root and the socket's group read metrics: names of handlers
	// and counts are not for every user of the node.
	socketMode = 0o660
	// maxConnections bounds the scrapers at once, against a local user who opens
	// connections and keeps them.
	maxConnections = 16
	// maxHeaderBytes bounds a request's headers; a scrape has a few hundred bytes.
	maxHeaderBytes = 16 << 10
	// readTimeout bounds how slowly a request may arrive, against slow-loris clients.
	readTimeout = 5 * time.Second
	// writeTimeout bounds one answer, against a client that does not read it.
	writeTimeout = 30 * time.Second
	// idleTimeout closes connections that a scraper left open.
	idleTimeout = 2 * time.Minute
	// closeTimeout bounds how long a stop waits for scrapes under way.
	closeTimeout = 2 * time.Second
	// retryPeriod is the pause between attempts to bind a port that is in use:
	// during an upgrade the husk before this one still holds it.
	retryPeriod = time.Second
)

const (
	unixScheme = "unix://"
	// freshSuffix ends the name under which a socket is made.
	freshSuffix = ".new"
	// maxSocketPath is sun_path without its terminating zero.
	maxSocketPath = 107
)

// address is a checked listening address.
type address struct{ network, value string }

// parseAddress accepts "unix:///path" and a loopback IP address with a port.
func parseAddress(addr string) (address, error) {
	op := fmt.Sprintf("metrics address %q", addr)
	if path, ok := strings.CutPrefix(addr, unixScheme); ok {
		if !filepath.IsAbs(path) || strings.HasSuffix(path, "/") {
			return address{}, errdefs.Newf(errdefs.InvalidArgument, op, "it names no absolute path of a socket")
		}
		if longest := maxSocketPath - len(freshSuffix); len(path) > longest {
			return address{}, errdefs.Newf(errdefs.InvalidArgument, op, "the path of the socket has more than %d bytes", longest)
		}
		return address{"unix", filepath.Clean(path)}, nil
	}
	// A name is refused: what it resolves to is not this file's to say.
	tcp, err := netip.ParseAddrPort(addr)
	if err != nil || tcp.Port() == 0 {
		return address{}, errdefs.Newf(errdefs.InvalidArgument, op, "it is neither unix:///path nor a loopback IP:port")
	}
	if !tcp.Addr().IsLoopback() {
		return address{}, errdefs.Newf(errdefs.InvalidArgument, op, "metrics have no authentication: only loopback addresses are allowed")
	}
	return address{"tcp", tcp.String()}, nil
}

// CheckAddress refuses what [Metrics.Serve] could never listen on.
func CheckAddress(addr string) error {
	_, err := parseAddress(addr)
	return err
}

// Serve answers on addr, "unix:///path" or a loopback "IP:port", until ctx is done.
// Any other address is errdefs.InvalidArgument. A socket at the path is replaced,
// in use or not: the husk after this one takes it over the same way, and so it stays
// when serving ends, or that one's could be removed. A port in use is waited for.
func (m *Metrics) Serve(ctx context.Context, addr string) error {
	at, err := parseAddress(addr)
	if err != nil {
		return err
	}
	listener, err := m.listen(ctx, at)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return errdefs.New(errdefs.KindOf(err), "serve metrics on "+addr, err)
	}
	server := &http.Server{
		Handler:           m.Handler(),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// What a broken client sent is not worth an operator's log.
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(netutil.LimitListener(listener, maxConnections)) }()
	select {
	case err := <-ended:
		return errdefs.New(errdefs.Internal, "serve metrics on "+addr, err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		// A scrape that is still under way is cut off.
		return server.Close()
	}
	return nil
}

// listen binds the address.
func (m *Metrics) listen(ctx context.Context, at address) (net.Listener, error) {
	if at.network == "unix" {
		return listenUnix(ctx, at.value)
	}
	for told := false; ; told = true {
		l, err := new(net.ListenConfig).Listen(ctx, at.network, at.value)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, err
		}
		if !told {
			m.log.WarnContext(ctx, "the metrics address is in use: waiting for it", "address", at.value)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(retryPeriod):
		}
	}
}

// listenUnix makes the socket beside its place and renames it there: the mode is
// right before anybody can find it, and there is no moment without a socket.
func listenUnix(ctx context.Context, path string) (_ net.Listener, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	fresh := path + freshSuffix
	for _, p := range []string{path, fresh} {
		if err := socketOrNothing(p); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // it would remove the name it no longer has
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close(), os.RemoveAll(fresh))
		}
	}()
	if err := os.Chmod(fresh, socketMode); err != nil {
		return nil, err
	}
	return l, os.Rename(fresh, path)
}

// socketOrNothing refuses a path at which there is anything but a socket.
func socketOrNothing(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errdefs.Newf(errdefs.InvalidArgument, "listen on "+path, "there is a file that is no socket")
	}
	return nil
}
