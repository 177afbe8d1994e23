package handover_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/handover"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// place is a short folder: the path of a socket has at most 107 bytes.
func place(t *testing.T) (dir string, o handover.Options) {
	t.Helper()
	dir, err := os.MkdirTemp("", "husk")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { NewWithT(t).Expect(os.RemoveAll(dir)).To(Succeed()) })
	return dir, handover.Options{Path: filepath.Join(dir, "run", "crio.sock"), HandoverPath: filepath.Join(dir, "run", "offer.sock")}
}

// husk is a process that has started: it greets every connection by its name.
type husk struct {
	*handover.Listener
	ctx  context.Context //nolint:containedctx // a test looks at how it ended
	stop func()
}

func start(t *testing.T, name string, o handover.Options) (husk, error) {
	t.Helper()
	l, err := handover.Listen(t.Context(), o)
	if err != nil {
		return husk{}, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	h := husk{Listener: l}
	var withdraw func()
	h.ctx, withdraw = l.Offer(ctx, slog.New(slog.DiscardHandler))
	h.stop = func() {
		cancel()
		withdraw()
		NewWithT(t).Expect(l.Close()).To(Succeed())
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
			_ = conn.Close()
		}
	}()
	go func() {
		<-h.ctx.Done()
		_ = l.Close()
	}()
	t.Cleanup(h.stop)
	return h, nil
}

// greeting is the name of the husk that answers at the socket.
func greeting(path string) string {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close() }()
	name, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return string(name)
}

func TestNewSocket(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	h, err := start(t, "first", o)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(h.Origin).To(Equal(handover.FromNowhere))
	g.Expect(greeting(o.Path)).To(Equal("first"))
	for path, mode := range map[string]os.FileMode{o.Path: handover.DefaultMode, o.HandoverPath: 0o600, o.Path + ".lock": 0o600} {
		info, err := os.Stat(path)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(info.Mode().Perm()).To(Equal(mode), path)
	}
	h.stop()
	g.Expect(o.Path).NotTo(BeAnExistingFile())
	g.Expect(o.HandoverPath).NotTo(BeAnExistingFile())
}

// TestHandoverChain has each husk take over from the one before it: the socket
// never refuses a connection, and its file is never another one.
func TestHandoverChain(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	old, err := start(t, "0", o)
	g.Expect(err).NotTo(HaveOccurred())
	file, err := os.Stat(o.Path)
	g.Expect(err).NotTo(HaveOccurred())
	stop, failed := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if got := greeting(o.Path); len(got) != 1 {
				failed <- got
				return
			}
		}
	}()
	for i := 1; i < 10; i++ {
		next, err := start(t, fmt.Sprint(i), o)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(next.Origin).To(Equal(handover.FromHusk))
		g.Eventually(old.ctx.Done(), "10s").Should(BeClosed())
		g.Expect(context.Cause(old.ctx)).To(MatchError(handover.ErrTaken))
		old.stop() // ends its accepting, and takes nothing away
		g.Expect(greeting(o.Path)).To(Equal(fmt.Sprint(i)))
		old = next
	}
	close(stop)
	g.Expect(<-failed).To(BeEmpty())
	now, err := os.Stat(o.Path)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.SameFile(file, now)).To(BeTrue())
	old.stop()
	g.Expect(o.Path).NotTo(BeAnExistingFile(), "the last one knows that the file is its own")
	g.Expect(o.HandoverPath).NotTo(BeAnExistingFile())
}

func TestStaleSocket(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	g.Expect(os.Mkdir(filepath.Dir(o.Path), 0o700)).To(Succeed())
	for _, path := range []string{o.Path, o.HandoverPath} { // what a husk that was killed leaves
		network := map[string]string{o.Path: "unix", o.HandoverPath: "unixpacket"}[path]
		dead, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
		g.Expect(err).NotTo(HaveOccurred())
		dead.SetUnlinkOnClose(false)
		g.Expect(dead.Close()).To(Succeed())
	}
	h, err := start(t, "second", o)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(h.Origin).To(Equal(handover.FromNowhere))
	next, err := start(t, "third", o)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(next.Origin).To(Equal(handover.FromHusk), "the hand-over socket was made anew too")
}

func TestWhatIsRefused(t *testing.T) {
	t.Parallel()
	dir, _ := place(t)
	socket := func(g Gomega, path string) {
		l, err := net.Listen("unix", path)
		g.Expect(err).NotTo(HaveOccurred())
		t.Cleanup(func() { _ = l.Close() })
	}
	for name, c := range map[string]struct {
		prepare func(g Gomega, path string)
		offer   string
		kind    errdefs.Kind
		says    string
	}{
		"file":    {func(g Gomega, path string) { g.Expect(os.WriteFile(path, []byte("precious"), 0o600)).To(Succeed()) }, "", errdefs.InvalidArgument, "no socket"},
		"folder":  {func(g Gomega, path string) { g.Expect(os.Mkdir(path, 0o700)).To(Succeed()) }, "", errdefs.InvalidArgument, "no socket"},
		"link":    {func(g Gomega, path string) { g.Expect(os.Symlink(filepath.Join(dir, "precious"), path)).To(Succeed()) }, "", errdefs.InvalidArgument, "no socket"},
		"process": {socket, "", errdefs.InUse, "another process answers there and does not hand over"},
		"mute":    {socket, "none.sock", errdefs.InUse, "another process answers there and does not hand over"},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			o := handover.Options{Path: filepath.Join(dir, name)}
			if c.offer != "" {
				o.HandoverPath = filepath.Join(dir, c.offer)
			}
			c.prepare(g, o.Path)
			before, err := os.Lstat(o.Path)
			g.Expect(err).NotTo(HaveOccurred())
			_, err = handover.Listen(t.Context(), o)
			g.Expect(errdefs.KindOf(err)).To(Equal(c.kind), "%v", err)
			g.Expect(err).To(MatchError(And(ContainSubstring(c.says), ContainSubstring(o.Path))))
			after, err := os.Lstat(o.Path)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(os.SameFile(before, after)).To(BeTrue())
		})
	}
}

// TestCloseLeavesAnothersFile: whatever has come to the path meanwhile stays.
func TestCloseLeavesAnothersFile(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	h, err := start(t, "first", o)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Remove(o.Path)).To(Succeed())
	other := o
	other.HandoverPath = ""
	_, err = start(t, "other", other)
	g.Expect(err).NotTo(HaveOccurred())
	h.stop()
	g.Expect(greeting(o.Path)).To(Equal("other"))
}

// TestOnlyOneWins starts many at once on what a killed one left.
func TestOnlyOneWins(t *testing.T) {
	t.Parallel()
	for range 10 {
		g := NewWithT(t)
		_, o := place(t)
		o.HandoverPath = ""
		g.Expect(os.Mkdir(filepath.Dir(o.Path), 0o700)).To(Succeed())
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Path, Net: "unix"})
		g.Expect(err).NotTo(HaveOccurred())
		dead.SetUnlinkOnClose(false)
		g.Expect(dead.Close()).To(Succeed())
		results := make(chan error, 8)
		for i := range cap(results) {
			go func() {
				_, err := start(t, fmt.Sprint(i), o)
				results <- err
			}()
		}
		won := 0
		for range cap(results) {
			err := <-results
			if err == nil {
				won++
				continue
			}
			g.Expect(errdefs.Is(err, errdefs.InUse)).To(BeTrue(), "%v", err)
		}
		g.Expect(won).To(Equal(1))
		g.Expect(greeting(o.Path)).To(HaveLen(1))
	}
}

// TestOneIsLeft starts many at once that hand over: each takes the socket from the
// one before it, and one is left.
func TestOneIsLeft(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	type result struct {
		husk
		err error
	}
	results := make(chan result, 8)
	for i := range cap(results) {
		go func() {
			h, err := start(t, fmt.Sprint(i), o)
			results <- result{h, err}
		}()
	}
	var all []husk
	for range cap(results) {
		r := <-results
		g.Expect(r.err).NotTo(HaveOccurred())
		all = append(all, r.husk)
	}
	g.Eventually(func() int {
		left := 0
		for _, h := range all {
			if h.ctx.Err() == nil {
				left++
			}
		}
		return left
	}, "10s").Should(Equal(1))
	g.Expect(greeting(o.Path)).To(HaveLen(1))
}

// TestLockIsWaitedFor: while another husk starts there, this one waits, and not for ever.
func TestLockIsWaitedFor(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	unlock, err := handover.Lock(t.Context(), o.Path)
	g.Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = handover.Listen(ctx, o)
	g.Expect(errdefs.Is(err, errdefs.Unavailable)).To(BeTrue(), "%v", err)
	g.Expect(err).To(MatchError(context.DeadlineExceeded))
	g.Expect(o.Path).NotTo(BeAnExistingFile())

	done := make(chan error, 1)
	go func() {
		_, err := start(t, "next", o)
		done <- err
	}()
	g.Consistently(done, "100ms").ShouldNot(Receive())
	g.Expect(unlock()).To(Succeed())
	g.Eventually(done, "10s").Should(Receive(BeNil()))
}

// TestNoOfferStillServes: another node's husk has the hand-over socket.
func TestNoOfferStillServes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, o := place(t)
	_, err := start(t, "first", o)
	g.Expect(err).NotTo(HaveOccurred())
	other := o
	other.Path = filepath.Join(dir, "other.sock")
	h, err := start(t, "other", other)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(greeting(other.Path)).To(Equal("other"))
	_, err = start(t, "third", other)
	g.Expect(errdefs.Is(err, errdefs.InUse)).To(BeTrue(), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("serves " + o.Path + ", not " + other.Path)))
	h.stop()
	g.Expect(greeting(o.Path)).To(Equal("first"))
	g.Expect(o.HandoverPath).To(BeAnExistingFile())
	g.Expect(errors.Is(h.ctx.Err(), context.Canceled)).To(BeTrue())
}
