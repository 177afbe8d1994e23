package cdhclient

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolatedEnv marks a process that is isolated.
const isolatedEnv = "HUSK_TEST_ISOLATED"

// Isolate runs the tests of a package in a network and a mount namespace of their own,
// with a loopback device and a tmpfs for temporary directories; m.Run is run, and its
// result is the exit code. Without root it runs them as they are. It is for TestMain.
func Isolate(run func() int) int {
	if os.Geteuid() != 0 {
		return run()
	}
	if os.Getenv(isolatedEnv) == "" {
		return again()
	}
	if err := settle(); err != nil {
		fmt.Fprintln(os.Stderr, "isolate:", err)
		return 1
	}
	return run()
}

// again runs this process again, in namespaces of its own.
func again() int {
	scratch, err := os.MkdirTemp("", "husk-isolated-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "isolate:", err)
		return 1
	}
	defer func() { _ = os.Remove(scratch) }()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx // the tests end themselves, by their own timeout
	cmd.Env = append(os.Environ(), isolatedEnv+"="+scratch)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	signal.Ignore(syscall.SIGINT) // the child decides
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "isolate:", err)
		return 1
	}
	return 0
}

// settle makes the new namespaces usable.
func settle() error {
	scratch := os.Getenv(isolatedEnv)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount %s: %w", scratch, err)
	}
	if err := os.Setenv("TMPDIR", scratch); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil { //nolint:noctx // before any test
		return fmt.Errorf("ip link: %w: %s", err, out)
	}
	return nil
}
