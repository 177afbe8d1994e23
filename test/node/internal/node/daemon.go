package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stopLimit is how long a daemon may take to end after SIGTERM.
const stopLimit = 20 * time.Second

// ReapCommand is the hidden subcommand of testnode that becomes the parent of a daemon.
const ReapCommand = "reap"

// Daemon is a program of the node.
type Daemon struct {
	Proc
	Reaper Proc     `json:"reaper"`
	Argv   []string `json:"argv"`
	Env    []string `json:"env"`
}

// errRuns says that a daemon of that name runs already.
var errRuns = errors.New("already running")

// Start starts a program in the background under a name. Its standard output and error go to NAME.out and NAME.log
// in the node's log folder. It runs below a reaper, to which its orphans (conmon, shims) fall: the machine's own
// init may be slow to reap. The program's environment is env and a few defaults, nothing of the caller's.
func (n *Node) Start(name string, env []string, argv ...string) error {
	if d, ok := n.Daemons[name]; ok && d.Alive() {
		return fmt.Errorf("start %s: %w, pid %d", name, errRuns, d.PID)
	}
	env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + n.path("home"), "TMPDIR=" + n.path("tmp"), "HUSK_TEST_NODE=" + n.Dir,
	}, env...)
	d := Daemon{Argv: argv, Env: env}
	if err := d.launch(n.path("log", name+".out"), n.path("log", name+".log")); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	n.Daemons[name] = d
	n.Reapers = append(n.Reapers, d.Reaper)
	return n.save()
}

// launch starts the reaper, which starts the daemon and tells its pid through a pipe.
func (d *Daemon) launch(outPath, logPath string) (err error) {
	out, err := appendTo(outPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	log, err := appendTo(logPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	// A caller's other files (bats' own descriptors) must not stay open in a daemon: bats would wait for it.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	self, err := os.Executable()
	if err != nil {
		return errors.Join(fmt.Errorf("find testnode: %w", err), w.Close())
	}
	cmd := exec.Command(self, append([]string{ReapCommand, "--"}, d.Argv...)...) //nolint:noctx // it outlives the caller
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Dir = d.Env, out, log, []*os.File{w}, "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = errors.Join(cmd.Start(), w.Close())
	if err != nil {
		return fmt.Errorf("start reaper: %w", err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return fmt.Errorf("see %s: %w", logPath, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return fmt.Errorf("reaper answered %q: %w", line, err)
	}
	if d.Reaper, err = process(cmd.Process.Pid); err != nil {
		return err
	}
	if d.Proc, err = process(pid); err != nil {
		return err
	}
	return cmd.Process.Release()
}

func appendTo(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// Stop sends sig to a daemon and waits until it is gone. What it started stays. A daemon that is not there is no
// error: a test may have killed it.
func (n *Node) Stop(name string, sig unix.Signal) error {
	d, ok := n.Daemons[name]
	if !ok {
		return nil
	}
	if err := d.signal(sig); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	if !d.wait(stopLimit) {
		err := d.signal(unix.SIGKILL)
		d.wait(stopLimit)
		return errors.Join(fmt.Errorf("%s ignored the signal for %s and was killed", name, stopLimit), err)
	}
	delete(n.Daemons, name)
	return n.save()
}

// Reap is the reaper: it starts argv, writes its pid to ready, and then lives as long as any process below it. It
// adopts orphans.
func Reap(ready io.WriteCloser, argv []string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	if len(argv) == 0 {
		return errors.New("nothing to run")
	}
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // its end is its own
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if _, err := fmt.Fprintln(ready, cmd.Process.Pid); err != nil {
		return fmt.Errorf("report pid: %w", err)
	}
	if err := ready.Close(); err != nil {
		return fmt.Errorf("report pid: %w", err)
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == cmd.Process.Pid:
			fmt.Fprintf(os.Stderr, "testnode: %s ended: exit %d, signal %d\n", argv[0], ws.ExitStatus(), ws.Signal())
		}
	}
}
