package pause

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
)

// pauseEnv makes the test binary a pause process that has been left a child.
const pauseEnv = "HUSK_TEST_PAUSE"

func TestMain(m *testing.M) {
	if os.Getenv(pauseEnv) == "" {
		os.Exit(m.Run())
	}
	child := exec.Command("sleep", "0.2")
	if err := child.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	fmt.Println(child.Process.Pid)
	Run()
	os.Exit(7)
}

// paused starts a pause process, and returns where /proc has its child.
func paused(t *testing.T) (cmd *exec.Cmd, child string) {
	t.Helper()
	g := NewWithT(t)
	cmd = exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), pauseEnv+"=1")
	out, err := cmd.StdoutPipe()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(cmd.Start()).To(Succeed())
	line, err := bufio.NewReader(out).ReadString('\n')
	g.Expect(err).NotTo(HaveOccurred())
	return cmd, "/proc/" + strings.TrimSpace(line)
}

func TestRunReapsAndEnds(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			cmd, child := paused(t)
			g.Expect(child).To(BeADirectory())
			g.Eventually(child, 10*time.Second).ShouldNot(BeADirectory(), "a zombie is there, too")
			g.Expect(cmd.ProcessState).To(BeNil(), "it goes on")
			// Whatever comes at the same time, the end is not lost.
			for range 100 {
				g.Expect(cmd.Process.Signal(unix.SIGCHLD)).To(Succeed())
			}
			g.Expect(cmd.Process.Signal(sig)).To(Succeed())
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			g.Eventually(ended, 10*time.Second).Should(Receive(MatchError("exit status 7")))
		})
	}
}
