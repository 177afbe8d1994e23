package podnet

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ownNode is set in the process whose network and mounts are the tests' own.
const ownNode = "HUSK_TEST_PODNET_OWN_NODE"

// TestMain runs the tests in a network and a mount namespace of their own: bridges, veths
// and mounts end with it. Without root the tests that make any are skipped.
func TestMain(m *testing.M) {
	if os.Getenv(ownNode) == "" && os.Geteuid() == 0 {
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), ownNode+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			os.Exit(0)
		case errors.As(err, &exit):
			os.Exit(1)
		}
		// No such namespaces here: the tests that need them say so.
	}
	if os.Getenv(ownNode) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// needNode skips a test that changes the machine's network.
func needNode(t *testing.T) {
	t.Helper()
	if os.Getenv(ownNode) == "" {
		t.Skip("needs root, and network and mount namespaces")
	}
	if _, err := os.Stat(realPlugins + "/bridge"); err != nil {
		t.Skip("needs the CNI plugins:", err)
	}
}
