package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// socketMode is CRI-O's: whoever can reach the socket is root on the node.
	socketMode = 0o660
	// probeTimeout bounds the question whether another husk listens already.
	probeTimeout = time.Second
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "stand in front of CRI-O",
		UsageText: "husk [--config FILE] serve",
		Before:    noArgs,
		Action:    serve,
	}
}

func serve(c *cli.Context) (err error) {
	n, err := openNode(c)
	if err != nil {
		return err
	}
	log, err := newLogger(c.App.ErrWriter, n.config)
	if err != nil {
		return err
	}
	backend := n.config.Backend
	if backend == "" {
		backend = n.crio.Listen
	}
	if err := checkSockets(n.config, backend); err != nil {
		return err
	}
	if err := checkHandlers(n.config, n.crio); err != nil {
		return err
	}
	repaired, err := n.store.Repair(c.Context)
	if err != nil {
		return err
	}
	if repaired > 0 {
		log.Warn("removed image records that a crash left half made", "records", repaired)
	}
	server, err := front.New(front.Config{
		Backend:        backend,
		DefaultHandler: n.config.DefaultHandler,
		AssumeHandler:  n.config.AssumeHandler,
		MaxPulls:       n.config.MaxPulls,
		PullTimeout:    n.config.PullTimeout.Duration,
	}, front.Collaborators{
		Handlers: handlers{n.config, n.crio}, Puller: n, Held: n, Records: n.store, Names: n.source, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	listener, err := listen(c.Context, n.config.Listen)
	if err != nil {
		return err
	}
	log.Info("serving CRI", "version", version, "listen", n.config.Listen, "backend", backend,
		"guest_pull_handlers", strings.Join(n.crio.GuestPullHandlers(), ","))
	for _, name := range n.crio.GuestPullHandlers() {
		for _, path := range []string{n.crio.Handlers[name].Path, n.crio.Handlers[name].ConfigPath} {
			if _, err := os.Stat(path); path != "" && err != nil {
				log.Warn("CRI-O ignores a runtime handler whose files are missing", "handler", name, "error", err)
			}
		}
	}
	if len(n.crio.GuestPullHandlers()) == 0 {
		log.Warn("no runtime handler in crio.conf has runtime_pull_image = true and runtime_type = \"vm\": every call is forwarded")
	}
	return server.Serve(c.Context, listener)
}

// checkSockets refuses the one mistake that looks like it works: husk in front of
// itself. /var/run/crio and /run/crio are one directory on most nodes.
func checkSockets(conf config.Config, backend string) error {
	if realPath(backend) != realPath(conf.Listen) {
		return nil
	}
	return errdefs.Newf(errdefs.InvalidArgument, "serve",
		"husk and CRI-O both listen on %s: set listen in [crio.api] of crio.conf to another socket", conf.Listen)
}

// realPath returns path without symlinks in the part of its directory that exists.
func realPath(path string) string {
	dir, rest := filepath.Split(filepath.Clean(path))
	for {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		parent := filepath.Dir(filepath.Clean(dir))
		if parent == filepath.Clean(dir) {
			return filepath.Clean(path)
		}
		rest = filepath.Join(filepath.Base(dir), rest)
		dir = parent
	}
}

// checkHandlers refuses handlers that CRI-O does not have: every pull or presence
// check that falls back on one would fail.
func checkHandlers(conf config.Config, crio crioconf.Config) error {
	for key, name := range map[string]string{"default_handler": conf.DefaultHandler, "assume_handler": conf.AssumeHandler} {
		if _, ok := crio.Handlers[name]; name != "" && !ok {
			return errdefs.Newf(errdefs.InvalidArgument, "serve", "%s names %q, which is no runtime handler of crio.conf", key, name)
		}
	}
	return nil
}

// listen takes the socket over from a husk that is gone. One that still answers keeps it.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
	}
	return l, nil
}

// removeStale removes a socket on which nobody listens any more, and nothing else.
func removeStale(ctx context.Context, path string) error {
	op := "listen on " + path
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return errdefs.New(errdefs.Internal, op, err)
	case info.Mode().Type() != fs.ModeSocket:
		return errdefs.Newf(errdefs.InvalidArgument, op, "there is a file that is no socket")
	}
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return errdefs.Newf(errdefs.InUse, op, "another process answers there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) { // busy, perhaps: not known to be dead
		return errdefs.New(errdefs.InUse, op, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}
