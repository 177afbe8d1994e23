package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/test/node/internal/accesslog"
	"github.com/husk-cri/husk/test/node/internal/build"
	"github.com/husk-cri/husk/test/node/internal/node"
)

func dirFlag() cli.Flag {
	return &cli.StringFlag{Name: "dir", Required: true, Usage: "the node's folder; short, since unix sockets lie in it"}
}

func cacheFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "cache", Value: defaultCache(), EnvVars: []string{"HUSK_CACHE"}, Usage: "folder for what is built",
	}
}

func defaultCache() string {
	d, err := os.UserCacheDir()
	if err != nil {
		d = os.TempDir()
	}
	return filepath.Join(d, "husk")
}

func signalFlag() cli.Flag {
	return &cli.StringFlag{Name: "signal", Value: "TERM", Usage: "the signal to send"}
}

func app() *cli.App {
	return &cli.App{
		Name:           "testnode",
		Usage:          "a node under test: stock CRI-O and a registry in one folder",
		HideVersion:    true,
		ExitErrHandler: func(*cli.Context, error) {}, // main exits
		Commands: []*cli.Command{
			{Name: "build", Usage: "build CRI-O, pinns and pause into the cache, unless they are there", Flags: []cli.Flag{cacheFlag()}, Action: buildNode},
			upCommand(),
			{Name: "down", Usage: "stop a node and remove everything it made; warns on stderr of what had to be forced", Flags: []cli.Flag{dirFlag()}, Action: down},
			{Name: "crio-stop", Usage: "stop CRI-O; pods keep running", Flags: []cli.Flag{dirFlag(), signalFlag()}, Action: stopCRIO},
			{Name: "crio-start", Usage: "start CRI-O again", Flags: []cli.Flag{dirFlag()}, Action: startCRIO},
			{Name: "registry-stop", Usage: "stop the registries", Flags: []cli.Flag{dirFlag()}, Action: stopRegistry},
			{Name: "registry-start", Usage: "start the registries again", Flags: []cli.Flag{dirFlag()}, Action: startRegistry},
			{
				Name: "start", Usage: "start a program as a daemon of the node, logging to DIR/log/NAME.log", ArgsUsage: "NAME COMMAND [ARG...]",
				Flags: []cli.Flag{dirFlag(), &cli.StringSliceFlag{Name: "env", Usage: "K=V for the program's environment"}}, Action: startDaemon,
			},
			{Name: "stop", Usage: "stop a daemon of the node", ArgsUsage: "NAME", Flags: []cli.Flag{dirFlag(), signalFlag()}, Action: stopDaemon},
			accessLogCommand(),
			{Name: node.ReapCommand, Hidden: true, Action: reap},
		},
	}
}

func buildNode(c *cli.Context) error {
	bins, err := build.Build(c.Context, c.String("cache"), os.Stderr)
	if err != nil {
		return err
	}
	return printJSON(c.App.Writer, bins)
}

func upCommand() *cli.Command {
	return &cli.Command{
		Name: "up", Usage: "start a node and print its node.json", Action: up,
		Flags: []cli.Flag{
			dirFlag(), cacheFlag(),
			&cli.StringFlag{Name: "name", Usage: "of the node (default: the folder's)"},
			&cli.StringFlag{Name: "husk-shim", Usage: "path of containerd-shim-husk-v2: adds the handler husk"},
			&cli.StringFlag{Name: "shim-config", Usage: "runtime_config_path of the handler husk"},
			&cli.StringFlag{Name: "crio-socket-name", Usage: "file name of CRI-O's socket (default crio-backend.sock)"},
			&cli.StringFlag{Name: "auth", Usage: "user:password of a second registry"},
			&cli.StringFlag{Name: "crio-log-level", Value: "info", Usage: "debug shows passwords"},
			&cli.StringSliceFlag{Name: "crio-conf", Usage: "a drop-in for crio.conf.d"},
		},
	}
}

func up(c *cli.Context) error {
	bins, err := build.Build(c.Context, c.String("cache"), os.Stderr)
	if err != nil {
		return err
	}
	shim := node.Shim{Path: c.String("husk-shim"), Config: c.String("shim-config")}
	for _, p := range []*string{&shim.Path, &shim.Config} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return fmt.Errorf("shim: %w", err)
		}
	}
	n, err := node.Up(c.Context, node.Options{
		Dir: c.String("dir"), Name: c.String("name"), Bin: bins, Shim: shim, Auth: c.String("auth"),
		SocketName: c.String("crio-socket-name"), LogLevel: c.String("crio-log-level"), DropIns: c.StringSlice("crio-conf"),
	})
	if err != nil {
		return err
	}
	return printJSON(c.App.Writer, n)
}

// withNode does something with the locked node of --dir.
func withNode(c *cli.Context, do func(*node.Node) error) error {
	n, unlock, err := node.Load(c.String("dir"))
	if err != nil {
		return err
	}
	defer unlock()
	return do(n)
}

func down(c *cli.Context) error {
	err := withNode(c, func(n *node.Node) error {
		warnings, err := n.Down(c.Context)
		for _, w := range warnings {
			fmt.Fprintf(os.Stderr, "testnode: warning: %v\n", w)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) { // down again
		return nil
	}
	return err
}

func stopCRIO(c *cli.Context) error {
	sig, err := parseSignal(c)
	if err != nil {
		return err
	}
	return withNode(c, func(n *node.Node) error { return n.StopCRIO(sig) })
}

func startCRIO(c *cli.Context) error {
	return withNode(c, func(n *node.Node) error { return n.StartCRIO(c.Context) })
}

func stopRegistry(c *cli.Context) error {
	return withNode(c, (*node.Node).StopRegistry)
}

func startRegistry(c *cli.Context) error {
	return withNode(c, func(n *node.Node) error { return n.StartRegistry(c.Context) })
}

func startDaemon(c *cli.Context) error {
	if c.NArg() < 2 {
		return errors.New("start: want NAME COMMAND [ARG...]")
	}
	return withNode(c, func(n *node.Node) error {
		return n.Start(c.Args().First(), c.StringSlice("env"), c.Args().Tail()...)
	})
}

func stopDaemon(c *cli.Context) error {
	sig, err := parseSignal(c)
	if err != nil {
		return err
	}
	if c.NArg() != 1 {
		return errors.New("stop: want NAME")
	}
	return withNode(c, func(n *node.Node) error { return n.Stop(c.Args().First(), sig) })
}

func parseSignal(c *cli.Context) (unix.Signal, error) {
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(c.String("signal")), "SIG")
	sig := unix.SignalNum(name)
	if sig == 0 {
		return 0, fmt.Errorf("unknown signal %s", name)
	}
	return sig, nil
}

func accessLogCommand() *cli.Command {
	return &cli.Command{
		Name: "access-log", Usage: "print the registry's access log as JSON lines", Action: accessLog,
		Flags: []cli.Flag{
			dirFlag(),
			&cli.Int64Flag{Name: "since", Usage: "offset in the log to start at"},
			&cli.BoolFlag{Name: "offset", Usage: "only print the log's present end, for a later --since"},
			&cli.BoolFlag{Name: "auth-registry", Usage: "the registry with authentication"},
			&cli.DurationFlag{
				Name: "settle", Value: 100 * time.Millisecond,
				Usage: "wait first: the registry logs a request when it has answered it",
			},
		},
	}
}

func accessLog(c *cli.Context) (err error) {
	n, err := node.Read(c.String("dir"))
	if err != nil {
		return err
	}
	r := &n.Registry
	if c.Bool("auth-registry") {
		r = n.AuthRegistry
	}
	if r == nil {
		return errors.New("the node has no registry with authentication")
	}
	time.Sleep(c.Duration("settle"))
	f, err := os.Open(r.AccessLog)
	if err != nil {
		return fmt.Errorf("open access log: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if c.Bool("offset") {
		end, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return fmt.Errorf("seek access log: %w", err)
		}
		_, err = fmt.Fprintln(c.App.Writer, end)
		return err
	}
	if _, err := f.Seek(c.Int64("since"), io.SeekStart); err != nil {
		return fmt.Errorf("seek access log: %w", err)
	}
	entries, err := accesslog.Read(f, c.Int64("since"))
	if err != nil {
		return err
	}
	enc := json.NewEncoder(c.App.Writer)
	for _, e := range entries {
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

func reap(c *cli.Context) error {
	return node.Reap(os.NewFile(3, "ready"), c.Args().Slice())
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
