package crictl

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name: "exec", Usage: "run a command in a container", ArgsUsage: "CONTAINER-ID COMMAND [ARG...]", Action: execute,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "sync", Aliases: []string{"s"}, Usage: "as kubelet's exec probes do (ExecSync)"},
			&cli.Int64Flag{Name: "timeout", Usage: "seconds, for --sync; 0: none"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "with a terminal"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "keep standard input open"},
		},
	}
}

func execute(c *cli.Context) error {
	if err := needArgs(c, 2, -1); err != nil {
		return err
	}
	id, command := c.Args().First(), c.Args().Tail()
	var err error
	if c.Bool("sync") {
		err = execSync(c, id, command)
	} else {
		err = execStream(c, id, command)
	}
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return cli.Exit("non-zero exit code", exit.ExitStatus())
	}
	if err != nil {
		return fmt.Errorf("execing command in container %s: %w", id, err)
	}
	return nil
}

func execSync(c *cli.Context, id string, command []string) error {
	r, err := runtimeService(parent(c)) // the subcommand's --timeout is another one
	if err != nil {
		return err
	}
	stdout, stderr, err := r.ExecSync(c.Context, id, command, time.Duration(c.Int64("timeout"))*time.Second)
	if _, werr := c.App.Writer.Write(stdout); werr != nil {
		err = errors.Join(err, werr)
	}
	if _, werr := c.App.ErrWriter.Write(stderr); werr != nil {
		err = errors.Join(err, werr)
	}
	return err
}

// execStream dials the URL that the runtime answers, as kubelet does for kubectl exec.
func execStream(c *cli.Context, id string, command []string) error {
	r, err := runtimeService(parent(c))
	if err != nil {
		return err
	}
	tty := c.Bool("tty")
	resp, err := r.Exec(c.Context, &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: command, Tty: tty, Stdin: c.Bool("interactive"), Stdout: true, Stderr: !tty,
	})
	if err != nil {
		return err
	}
	return stream(c.Context, c, resp.GetUrl(), tty)
}

func stream(ctx context.Context, c *cli.Context, address string, tty bool) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("streaming URL: %w", err)
	}
	// Insecure: the stream server of a test node is plain HTTP on the loopback interface.
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "POST", u)
	if err != nil {
		return fmt.Errorf("streaming client: %w", err)
	}
	opts := remotecommand.StreamOptions{Stdout: c.App.Writer, Tty: tty}
	if !tty {
		opts.Stderr = c.App.ErrWriter
	}
	if c.Bool("interactive") {
		opts.Stdin = os.Stdin
	}
	if tty {
		opts.TerminalSizeQueue = terminalSizes(ctx)
	}
	return executor.StreamWithContext(ctx, opts)
}
