package taskclient

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestContainerOnTheRealShim(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	g, ctx := e.g, t.Context()
	var stdout, stderr syncBuffer
	in, feed := io.Pipe()
	id, s := e.run(StreamsConfig{Stdin: in, Stdout: &stdout, Stderr: &stderr}, "/bin/sh", "-c", "cat; echo bad >&2; exit 7")
	copied := make(chan error, 1)
	go func() { copied <- s.CopyStdin(ctx) }()

	// Execs, while it runs: everything that is printed arrives, as do exit codes and input.
	var out, errOut syncBuffer
	execID, es := e.exec(id, StreamsConfig{Stdout: &out, Stderr: &errOut}, "/bin/sh", "-c", "seq 1 100000; echo no >&2; exit 3")
	g.Expect(e.finish(id, execID, es)).To(Equal(3))
	g.Expect(strings.Count(out.String(), "\n")).To(Equal(100000))
	g.Expect(out.String()).To(HaveSuffix("\n100000\n"))
	g.Expect(errOut.String()).To(Equal("no\n"))
	_, err := e.shim.State(ctx, newID(t))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)

	var echoed syncBuffer
	execID, es = e.exec(id, StreamsConfig{Stdin: strings.NewReader(strings.Repeat("x", 1<<20)), Stdout: &echoed}, "/bin/cat")
	g.Expect(es.CopyStdin(ctx)).To(Succeed())
	g.Expect(e.shim.CloseStdin(ctx, id, execID)).To(Succeed())
	g.Expect(e.finish(id, execID, es)).To(BeZero())
	g.Expect(echoed.String()).To(HaveLen(1 << 20))

	// A Wait ends with its context, and the process does not.
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = e.shim.Wait(short, id, "")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	g.Expect(e.shim.State(ctx, id)).To(HaveField("Status", StatusRunning))

	_, err = feed.Write([]byte("hello\n"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Eventually(stdout.String, 5*time.Second).Should(Equal("hello\n"))
	g.Expect(feed.Close()).To(Succeed())
	g.Eventually(copied, 5*time.Second).Should(Receive(BeNil()))
	g.Expect(e.shim.CloseStdin(ctx, id, "")).To(Succeed())
	g.Expect(e.finish(id, "", s)).To(Equal(7))
	g.Expect(stderr.String()).To(Equal("bad\n"))
	e.end()
}

func TestSignalsOnTheRealShim(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	g, ctx := e.g, t.Context()
	var out syncBuffer
	id, s := e.run(StreamsConfig{Stdout: &out}, "/bin/sh", "-c", "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
	g.Eventually(out.String, 5*time.Second).Should(Equal("ready\n"))
	execID, es := e.exec(id, StreamsConfig{}, "/bin/sleep", "1000")
	g.Expect(e.shim.Kill(ctx, id, execID, syscall.SIGKILL, false)).To(Succeed())
	g.Expect(e.finish(id, execID, es)).To(Equal(128 + int(syscall.SIGKILL)))
	g.Expect(e.shim.Kill(ctx, id, "", syscall.SIGTERM, false)).To(Succeed())
	g.Expect(e.finish(id, "", s)).To(Equal(5))
	g.Expect(out.String()).To(Equal("ready\nasked\n"))
	g.Expect(errdefs.KindOf(e.shim.Kill(ctx, id, "", syscall.SIGTERM, false))).To(Equal(errdefs.NotFound))
	e.end()
}

func TestTerminalOnTheRealShim(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	g, ctx := e.g, t.Context()
	var out syncBuffer
	in, feed := io.Pipe()
	id, s := e.run(StreamsConfig{Terminal: true, Stdin: in, Stdout: &out, Stderr: &out}, "/bin/sh")
	g.Expect(s.IO().Stderr).To(BeEmpty())
	ended := make(chan error, 1)
	go func() { ended <- s.CopyStdin(ctx) }()
	g.Expect(e.shim.Resize(ctx, id, "", 123, 45)).To(Succeed())
	_, err := feed.Write([]byte("stty size\n"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Eventually(out.String, 5*time.Second).Should(ContainSubstring("45 123\r\n"))
	_, err = feed.Write([]byte("exit 9\n"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(e.finish(id, "", s)).To(Equal(9))
	g.Expect(s.Close()).To(Succeed())
	g.Eventually(ended, 5*time.Second).Should(Receive(MatchError(ContainSubstring("were closed here"))))
	e.end()
}

func TestKilledShim(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	g, ctx := e.g, t.Context()
	var out syncBuffer
	id, s := e.run(StreamsConfig{Stdout: &out}, "/bin/sh", "-c", "echo ready; sleep 1000")
	g.Eventually(out.String, 5*time.Second).Should(Equal("ready\n"))
	exit := make(chan Exit, 1)
	go func() {
		at, err := e.shim.Wait(ctx, id, "")
		if err != nil {
			t.Error(err)
		}
		exit <- at
	}()
	e.killShim()
	g.Eventually(exit, 10*time.Second).Should(Receive(HaveField("Code", 128+int(syscall.SIGKILL))), "its keeper answers")
	g.Expect(s.Wait(ctx)).To(Succeed())

	// Another process finds it, and cleans up.
	address, err := Address(filepath.Join(e.dir, id))
	g.Expect(err).NotTo(HaveOccurred())
	e.shim, err = Dial(ctx, address)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = e.shim.Close() }()
	g.Expect(e.shim.State(ctx, id)).To(HaveField("Status", StatusStopped))
	_, err = e.shim.Delete(ctx, id, "")
	g.Expect(err).NotTo(HaveOccurred())
	e.end()
}

// Nobody is left to answer: calls fail at once, and `delete` cleans up.
func TestKilledShimAndKeeper(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	g, ctx := e.g, t.Context()
	id, s := e.run(StreamsConfig{Stdout: io.Discard}, "/bin/sleep", "1000")
	state, err := e.shim.State(ctx, id)
	g.Expect(err).NotTo(HaveOccurred())
	ended := make(chan error, 1)
	go func() {
		_, err := e.shim.Wait(ctx, id, "")
		ended <- err
	}()
	pids := e.processes()
	g.Expect(len(pids)).To(BeNumerically(">=", 2))
	for _, pid := range pids {
		g.Expect(syscall.Kill(pid, syscall.SIGSTOP)).To(Succeed()) // so that neither sees the other die
	}
	for _, pid := range pids {
		g.Expect(syscall.Kill(pid, syscall.SIGKILL)).To(Succeed())
	}
	g.Eventually(ended, 10*time.Second).Should(Receive(&err))
	if err != nil { // else a sweep, that of another test's pod, has brought the pod a keeper already
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	}
	g.Expect(s.Wait(ctx)).To(Succeed())
	for _, gone := range []string{id, e.sandboxID} {
		g.Expect(e.runtime.Delete(ctx, gone, filepath.Join(e.dir, gone))).To(Succeed())
	}
	g.Eventually(func() error { return syscall.Kill(state.Pid, 0) }, 5*time.Second).Should(Equal(syscall.ESRCH))
	left, err := filepath.Glob(filepath.Join(e.dir, "runc", "default", "*"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(left).To(BeEmpty())
}
