package handover_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/handover"
)

// child is what this test's binary does as another process.
func child(text string) int {
	var order childOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		fmt.Print(err)
		return 1
	}
	if order.Do == "ask" {
		return ask(order.Options)
	}
	// What systemd does between fork and exec.
	_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := handover.Listen(ctx, order.Options)
	if err != nil {
		fmt.Print(err)
		return 1
	}
	conn, err := l.Accept()
	if err != nil {
		fmt.Print(err)
		return 1
	}
	_, _ = fmt.Fprintf(conn, "%s %s", l.Origin, os.Getenv("LISTEN_FDS"))
	_ = conn.Close()
	if err := l.Close(); err != nil {
		fmt.Print(err)
		return 1
	}
	return 0
}

func ask(o handover.Options) int {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: o.HandoverPath, Net: "unixpacket"})
	if err != nil {
		fmt.Print(err)
		return 1
	}
	message, rights := make([]byte, 4<<10), make([]byte, 64)
	_, _ = fmt.Fprintf(conn, `{"version":1,"listen":%q}`, o.Path)
	n, used, _, _, err := conn.ReadMsgUnix(message, rights)
	if err != nil || n == 0 {
		fmt.Printf("no reply, %d bytes of descriptors", used)
		return 0
	}
	fmt.Printf("%s, %d bytes of descriptors", message[:n], used)
	return 0
}

// systemd listens for a husk, as a socket unit does.
func systemd(t *testing.T, path string) *os.File {
	t.Helper()
	g := NewWithT(t)
	g.Expect(os.MkdirAll(filepath.Dir(path), 0o700)).To(Succeed())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	g.Expect(err).NotTo(HaveOccurred())
	f, err := l.File()
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _, _ = f.Close(), l.Close() })
	return f
}

func TestSystemdsSocket(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, o := place(t)
	g.Expect(os.Mkdir(filepath.Join(dir, "run"), 0o700)).To(Succeed())
	g.Expect(os.Symlink("run", filepath.Join(dir, "var-run"))).To(Succeed())
	other := systemd(t, filepath.Join(dir, "other.sock"))
	socket := systemd(t, filepath.Join(dir, "var-run", "crio.sock")) // another name of the folder
	for range 3 {                                                    // restarts
		cmd := command(g, childOrder{Do: "serve", Options: o})
		cmd.Env = append(cmd.Env, "LISTEN_FDS=2")
		cmd.ExtraFiles = []*os.File{other, socket}
		// It is not there yet, and the connection waits.
		answer := make(chan string, 1)
		go func() { answer <- greeting(o.Path) }()
		out, err := cmd.CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred(), string(out))
		g.Expect(<-answer).To(Equal("systemd "), "and no child of it inherits the variables")
		g.Expect(o.Path).To(BeAnExistingFile(), "the file is systemd's")
	}
}

func TestSystemdsSocketElsewhere(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, o := place(t)
	cmd := command(g, childOrder{Do: "serve", Options: o})
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{systemd(t, filepath.Join(dir, "other.sock"))}
	out, err := cmd.CombinedOutput()
	g.Expect(err).To(HaveOccurred())
	g.Expect(string(out)).To(And(ContainSubstring("other.sock instead"), ContainSubstring(o.Path)))
	g.Expect(o.Path).NotTo(BeAnExistingFile())
}

// TestSystemdRelieves ends a husk that somebody started by hand and that took the
// socket from systemd's: two must not serve.
func TestSystemdRelieves(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	manual, err := start(t, "manual", o)
	g.Expect(err).NotTo(HaveOccurred())
	// systemd kept its own descriptor of the socket all the time.
	kept := keepSocket(t, o)
	cmd := command(g, childOrder{Do: "serve", Options: o})
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{kept}
	g.Expect(cmd.Start()).To(Succeed())
	g.Eventually(manual.ctx.Done(), "20s").Should(BeClosed())
	g.Expect(context.Cause(manual.ctx)).To(MatchError(handover.ErrTaken))
	g.Eventually(greeting, "20s").WithArguments(o.Path).Should(Equal("systemd "))
	g.Expect(cmd.Wait()).To(Succeed())
}

// keepSocket returns a descriptor of the socket that a husk serves, by asking for it
// and giving no receipt.
func keepSocket(t *testing.T, o handover.Options) *os.File {
	t.Helper()
	g := NewWithT(t)
	conn := dialOffer(g, o.HandoverPath)
	defer func() { _ = conn.Close() }()
	_, err := fmt.Fprintf(conn, `{"version":1,"listen":%q}`, o.Path)
	g.Expect(err).NotTo(HaveOccurred())
	message, rights := make([]byte, 4<<10), make([]byte, 64)
	_, used, _, _, err := conn.ReadMsgUnix(message, rights)
	g.Expect(err).NotTo(HaveOccurred())
	files := openRights(g, rights[:used])
	g.Expect(files).To(HaveLen(2))
	g.Expect(files[1].Close()).To(Succeed())
	t.Cleanup(func() { _ = files[0].Close() })
	return files[0]
}

func TestNotify(t *testing.T) {
	g := NewWithT(t) // not parallel: it sets the environment
	g.Expect(handover.Notify(handover.Ready, "nobody wants to know")).To(Succeed())
	dir, _ := place(t)
	path := filepath.Join(dir, "notify.sock")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	for state, says := range map[handover.State]string{
		handover.Ready:     "^READY=1\nSTATUS=a line$",
		handover.Reloading: "^RELOADING=1\nMONOTONIC_USEC=[0-9]+\nSTATUS=a line$",
		handover.Stopping:  "^STOPPING=1\nSTATUS=a line$",
	} {
		g.Expect(handover.Notify(state, "a line")).To(Succeed())
		buffer := make([]byte, 1<<10)
		n, err := l.Read(buffer)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(buffer[:n])).To(MatchRegexp(says))
	}
}
