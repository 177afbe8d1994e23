package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
)

// keep is systemd with a socket unit: it listens, starts the service with the
// socket, and on SIGHUP stops the service and starts it again.
func keep(ctx context.Context, args []string) error {
	var socket string
	flags := flag.NewFlagSet("keep", flag.ContinueOnError)
	flags.StringVar(&socket, "socket", "", "`path` to listen on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if socket == "" || flags.NArg() == 0 {
		return errors.New("keep needs --socket and a command")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	file, err := l.File()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	for {
		service, err := launch(file, flags.Args())
		if err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- service.Wait() }()
		select {
		case err := <-ended:
			return errors.Join(errors.New("the service has ended"), err)
		case <-again:
		case <-ctx.Done():
		}
		if err := service.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := <-ended; err != nil {
			return fmt.Errorf("stop the service: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		fmt.Println("restart")
	}
}

// launch starts argv by way of exec, which knows its own pid.
func launch(socket *os.File, argv []string) (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe", append([]string{"exec"}, argv...)...) //nolint:noctx // it is stopped by a signal
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=husk.socket")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{socket}
	return cmd, cmd.Start()
}

// become is what systemd does between fork and exec.
func become(argv []string) error {
	if len(argv) == 0 {
		return errors.New("exec needs a command")
	}
	env := append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	return syscall.Exec(argv[0], argv, env)
}
