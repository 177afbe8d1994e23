package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/podrun"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/layout"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "run a container, without CRI-O or Kubernetes",
		UsageText: "husk run [options] IMAGE [COMMAND [ARGUMENT...]]",
		Description: "Fetches manifest and config of IMAGE, makes a pod, and has the pod pull the layers and run them. " +
			"What follows IMAGE replaces the image's CMD and follows its ENTRYPOINT. Exits as the container's process does: 128 and the " +
			"signal's number for one that a signal ended. If husk itself fails it says so in a line that begins with \"husk: \". " +
			"Signals are passed on; a second Ctrl-C kills. Neither CRI-O nor its configuration is needed; where crio.conf is there, " +
			"its storage, its networks and its handlers are used.\n\n" +
			"The layers are pulled in the pod's network, with --net none in the host's.",
		UseShortOptionHandling: true, // -it
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "runtime", Value: "husk", Usage: "run with `NAME`: a handler of crio.conf, a shim containerd-shim-NAME-v2, or a path"},
			&cli.StringFlag{Name: "runtime-config", Usage: "have the runtime read `FILE`", TakesFile: true},
			&cli.StringFlag{Name: "pod", Usage: "join the pod `NAME`, or make it"},
			&cli.StringFlag{Name: "name", Usage: "call the container `NAME`"},
			&cli.StringFlag{Name: "net", Usage: "use the CNI `NETWORK`, host, or none; default is the node's default network"},
			&cli.StringSliceFlag{Name: "volume", Aliases: []string{"v"}, Usage: "mount `SOURCE:DESTINATION[:ro]`; may be repeated"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `NAME[=VALUE]`, without a value to what husk has; may be repeated"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `USER[:GROUP]` instead of the image's user"},
			&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "start in `DIR` of the container"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the process a terminal"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "pass standard input on"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "leave it running and print its ID"},
			&cli.BoolFlag{Name: "rm", Usage: "remove it when it has ended"},
			&cli.BoolFlag{Name: "read-only", Usage: "mount the root file system read-only"},
			&cli.StringFlag{Name: "cgroup-parent", Usage: "put the pod's cgroup below `GROUP`, a path or a slice", Value: podrun.DefaultCgroupParent},
			&cli.StringFlag{Name: "username", Usage: "log in to the registry as `NAME`"},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from standard input"},
		},
		Action: runContainer,
	}
}

func runContainer(c *cli.Context) error {
	if !c.Args().Present() {
		return errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "no image; usage: %s", c.Command.UsageText)
	}
	if err := needsRoot(c); err != nil {
		return err
	}
	o, err := runOptions(c)
	if err != nil {
		return err
	}
	if c.Bool("detach") && !isMonitor() {
		return detach(c)
	}
	if err := keepOwn(); err != nil {
		return errdefs.New(errdefs.Internal, "run", err)
	}
	ctx, a := attach(c)
	defer a.end()
	o.IO, o.Started = a.IO, func(string) { a.started() }
	if isMonitor() {
		ready, err := monitorReady()
		if err != nil {
			return err
		}
		o.IO.Stdin, o.IO.Stdout, o.IO.Stderr = nil, nil, nil
		o.Started = func(id string) { a.started(); ready(id) }
	}
	code, err := runImage(ctx, c, &o)
	return a.result(ctx, code, err)
}

// runOptions are what the command line says.
func runOptions(c *cli.Context) (podrun.Options, error) {
	o := podrun.Options{
		Name: c.String("name"), Pod: c.String("pod"), Network: c.String("net"), CgroupParent: c.String("cgroup-parent"),
		ReadonlyRoot: c.Bool("read-only"), Terminal: c.Bool("tty"), AutoRemove: c.Bool("rm"),
		Request: bundlegen.Request{Args: c.Args().Tail(), WorkingDir: c.String("workdir"), RunAsUsername: c.String("user")},
	}
	if c.Bool("interactive") && (c.Bool("detach") || c.Bool("password-stdin")) {
		return o, errdefs.Newf(errdefs.InvalidArgument, "run", "--interactive goes neither with --detach nor with --password-stdin")
	}
	if layout.Is(c.Args().First()) {
		return o, errdefs.Newf(errdefs.Unsupported, "run "+c.Args().First(), "a pod pulls from registries alone")
	}
	var err error
	if o.Request.Env, err = environment(c); err != nil {
		return o, err
	}
	for _, v := range c.StringSlice("volume") {
		mount, err := parseVolume(v)
		if err != nil {
			return o, err
		}
		o.Volumes = append(o.Volumes, mount)
	}
	return o, nil
}

// runImage pulls what describes the image and runs it.
func runImage(ctx context.Context, c *cli.Context, o *podrun.Options) (int, error) {
	credentials, err := readCredentials(c)
	if err != nil {
		return 0, err
	}
	r, err := openRunner(c, true)
	if err != nil {
		return 0, err
	}
	if o.Runtime, err = runtimeOf(c.String("runtime"), c.String("runtime-config"), r.Crio.Handlers); err != nil {
		return 0, err
	}
	if err := r.Prepare(ctx, o); err != nil {
		return 0, err
	}
	done := progress(c, "pulling "+c.Args().First())
	result, err := manifestonly.Pull(ctx, manifestonly.Request{Name: c.Args().First(), Credentials: credentials}, r.Source, r.store)
	done("metadata", err)
	if err != nil {
		return 0, err
	}
	o.Image, o.Pulled = result.Record, result.Pulled
	if credentials == (registryauth.Credentials{}) {
		if credentials, err = r.nodeCredentials(result.Pulled.Reference); err != nil {
			return 0, err
		}
	}
	o.Credentials = credentials
	return r.Run(ctx, *o)
}

// parseVolume reads SOURCE:DESTINATION[:ro|rw].
func parseVolume(text string) (rspec.Mount, error) {
	op := "mount " + text
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) {
		return rspec.Mount{}, errdefs.Newf(errdefs.InvalidArgument, op, "want SOURCE:DESTINATION[:ro], with an absolute destination")
	}
	mode := "rw"
	if len(parts) == 3 {
		mode = parts[2]
	}
	if mode != "ro" && mode != "rw" {
		return rspec.Mount{}, errdefs.Newf(errdefs.InvalidArgument, op, "%q is neither ro nor rw", mode)
	}
	source, err := filepath.Abs(parts[0])
	if err != nil {
		return rspec.Mount{}, errdefs.New(errdefs.Internal, op, err)
	}
	if _, err := os.Stat(source); err != nil {
		return rspec.Mount{}, errdefs.New(errdefs.NotFound, op, err)
	}
	return rspec.Mount{Destination: filepath.Clean(parts[1]), Type: "bind", Source: source, Options: []string{"rbind", "rprivate", mode}}, nil
}

// printLine prints one line.
func printLine(w io.Writer, text string) error {
	_, err := io.WriteString(w, text+"\n")
	return err
}
