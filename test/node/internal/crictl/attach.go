package crictl

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "attach to a container", ArgsUsage: "CONTAINER-ID", Action: attach,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "the container has a terminal"},
			&cli.BoolFlag{Name: "stdin", Aliases: []string{"i", "interactive"}, Usage: "pass standard input on"},
		},
	}
}

func attach(c *cli.Context) error {
	if err := needArgs(c, 1, 1); err != nil {
		return err
	}
	r, err := runtimeService(parent(c))
	if err != nil {
		return err
	}
	tty := c.Bool("tty")
	resp, err := r.Attach(c.Context, &runtimeapi.AttachRequest{
		ContainerId: c.Args().First(), Tty: tty, Stdin: c.Bool("stdin"), Stdout: true, Stderr: !tty,
	})
	if err != nil {
		return fmt.Errorf("attaching to container %s: %w", c.Args().First(), err)
	}
	return stream(c.Context, c, resp.GetUrl(), tty)
}

// terminalSizes tells the size of the terminal on standard input, and each change of it, as crictl and kubectl do. It
// is nil if that is no terminal.
func terminalSizes(ctx context.Context) remotecommand.TerminalSizeQueue {
	if _, err := terminalSize(); err != nil {
		return nil
	}
	changed := make(chan os.Signal, 1)
	changed <- unix.SIGWINCH // the first size is news as well
	signal.Notify(changed, unix.SIGWINCH)
	context.AfterFunc(ctx, func() { signal.Stop(changed); close(changed) })
	return sizes{changed}
}

type sizes struct{ changed <-chan os.Signal }

// Next waits for the next size; nil is the end.
func (s sizes) Next() *remotecommand.TerminalSize {
	if _, ok := <-s.changed; !ok {
		return nil
	}
	size, err := terminalSize()
	if err != nil {
		return nil
	}
	return &size
}

func terminalSize() (remotecommand.TerminalSize, error) {
	ws, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return remotecommand.TerminalSize{}, err
	}
	return remotecommand.TerminalSize{Width: ws.Col, Height: ws.Row}, nil
}
