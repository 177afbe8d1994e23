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
	"time"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/config"
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
		Name:   "serve",
		Usage:  "stand in front of CRI-O",
		Action: serve,
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
	if len(n.crio.GuestPullHandlers()) == 0 {
		log.Warn("no runtime handler in crio.conf has runtime_pull_image = true and runtime_type = \"vm\": every call is forwarded")
	}
	return server.Serve(c.Context, listener)
}

// checkSockets refuses the one mistake that looks like it works: husk in front of itself.
func checkSockets(conf config.Config, backend string) error {
	if filepath.Clean(backend) != filepath.Clean(conf.Listen) {
		return nil
	}
	return errdefs.Newf(errdefs.InvalidArgument, "serve",
		"husk and CRI-O both listen on %s: set listen in [crio.api] of crio.conf to another socket", conf.Listen)
}

// listen takes the socket over from a husk that is gone. One that still answers keeps it.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return nil, errdefs.Newf(errdefs.InUse, "listen on "+path, "another process answers there")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
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
