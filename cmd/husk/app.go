package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// Exit codes, for scripts; the man page lists them.
const (
	exitFailure     = 1
	exitNotFound    = 3
	exitRefused     = 4
	exitUnavailable = 5
)

func newApp() *cli.App {
	app := &cli.App{
		Name:                 "husk",
		Usage:                "metadata-only image pulls for stock CRI-O",
		UsageText:            "husk [--config FILE] COMMAND [options] [argument]",
		Version:              version,
		EnableBashCompletion: true,
		// A value of --env or --volume may have a comma in it.
		DisableSliceFlagSeparator: true,
		// Errors are printed once, in main, and no flag parser exits the process.
		ExitErrHandler: func(*cli.Context, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "config", Aliases: []string{"c"}, Value: config.DefaultFile,
				Usage: "read the configuration from `FILE`", EnvVars: []string{"HUSK_CONFIG"}, TakesFile: true,
			},
		},
		Description: "husk serve stands in front of CRI-O. For pods whose runtime handler has " +
			"runtime_pull_image = true it fetches an image's manifest and config and nothing else; " +
			"the runtime pulls the layers inside the pod. The other commands look at the records it keeps, and at what " +
			"the pods have pulled, or run containers without CRI-O (run, ps, pods, exec, logs, stop, rm).\n\n" +
			"Exit codes: 0 done; 1 failed, or check found something that is left; 3 image or record not found; 4 refused " +
			"(credentials, policy, in use, not an image); 5 registry or CRI-O unavailable. run and exec exit as the process did, " +
			"and with these if husk itself failed, which then says so in a line that begins with \"husk: \".\n\n" +
			"Files: /etc/husk/husk.toml (or $HUSK_CONFIG) is Husk's configuration, and may be missing; " +
			"its drop-ins are /etc/husk/husk.toml.d/*.toml; " +
			"/etc/crio/crio.conf and crio.conf.d are CRI-O's, read for its storage, handlers and policy; " +
			"/etc/husk/shim.toml is the shim's. All commands but resolve, config and version need root.",
		Action: noCommand,
		Commands: []*cli.Command{
			serveCommand(),
			pullCommand(),
			pullsCommand(sandboxes.Client{}),
			imagesCommand(sandboxes.Client{}),
			inspectCommand(),
			resolveCommand(),
			rmCommand(sandboxes.Client{}),
			bundleCommand(),
			runCommand(),
			psCommand(),
			podsCommand(),
			execCommand(),
			logsCommand(),
			stopCommand(),
			checkCommand(),
			guestCommand(),
			configCommand(),
			versionCommand(),
			completionCommand(),
			manCommand(),
		},
	}
	app.OnUsageError = usageError
	for _, command := range app.Commands {
		command.OnUsageError = usageError
	}
	return app
}

// noCommand is what husk does without a command it knows.
func noCommand(c *cli.Context) error {
	if c.NArg() == 0 {
		return cli.ShowAppHelp(c)
	}
	return errdefs.Newf(errdefs.InvalidArgument, "no command "+c.Args().First(), "see husk --help")
}

// usageError is the error of a wrong option, with the command's usage: one line, where
// the library would print the whole help before it.
func usageError(c *cli.Context, err error, _ bool) error {
	return errdefs.Newf(errdefs.InvalidArgument, err.Error(), "usage: %s", c.Command.UsageText)
}

// needsRoot refuses who can neither read CRI-O's storage nor stand in front of it,
// before anything is touched.
func needsRoot(c *cli.Context) error {
	if os.Geteuid() != 0 {
		return errdefs.Newf(errdefs.Unsupported, c.Command.Name, "needs root")
	}
	return nil
}

// exitStatus is the exit code of a process that husk ran. It is no failure of husk's.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("the process exited with %d", int(s)) }

// withStatus is a failure of husk's with an exit code of its own.
type withStatus struct {
	error
	status exitStatus
}

// Unwrap returns both.
func (w withStatus) Unwrap() []error { return []error{w.error, w.status} }

// statusOf is the error of a process that ended with code; nil if that is 0.
func statusOf(code int) error {
	if code == 0 {
		return nil
	}
	return exitStatus(code)
}

// complain says what went wrong, unless that is the process' own business, and returns
// the exit code.
func complain(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if _, ok := err.(exitStatus); !ok { //nolint:errorlint // wrapped, there is more to say
		_, _ = fmt.Fprintln(w, "husk:", err) // there is nowhere else to say it
	}
	return exitCode(err)
}

// exitCode tells a script what kind of failure it was.
func exitCode(err error) int {
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	switch errdefs.KindOf(err) {
	case errdefs.NotFound, errdefs.NoPlatform:
		return exitNotFound
	case errdefs.Unauthorized, errdefs.PolicyRefused, errdefs.InUse, errdefs.NotAnImage, errdefs.TooLarge, errdefs.DigestMismatch:
		return exitRefused
	case errdefs.RegistryUnavailable, errdefs.Unavailable, errdefs.DeadlineExceeded:
		return exitUnavailable
	default:
		return exitFailure
	}
}
