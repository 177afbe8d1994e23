package handover_test

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/handover"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func dialOffer(g Gomega, path string) *net.UnixConn {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(conn.SetDeadline(time.Now().Add(20 * time.Second))).To(Succeed())
	return conn
}

// TestTheNewOneCrashes ends the new husk at every step: the old one serves on, and
// the next one takes over.
func TestTheNewOneCrashes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, o := place(t)
	old, err := start(t, "old", o)
	g.Expect(err).NotTo(HaveOccurred())
	ask := `{"version":1,"listen":"` + o.Path + `"}`
	for name, messages := range map[string][]string{
		"before it asks":         nil,
		"with nonsense":          {"nonsense"},
		"with too much":          {string(make([]byte, 8<<10))},
		"with another version":   {`{"version":9,"listen":"` + o.Path + `"}`},
		"for another socket":     {`{"version":1,"listen":"/run/other.sock"}`},
		"before its receipt":     {ask},
		"with a refusal":         {ask, `{"taken":false}`},
		"with a broken receipt":  {ask, `{"taken":`},
		"with an empty receipt":  {ask, `{}`},
		"with a doubled request": {ask, ask},
	} {
		conn := dialOffer(g, o.HandoverPath)
		for _, m := range messages {
			_, err := conn.Write([]byte(m))
			g.Expect(err).NotTo(HaveOccurred(), name)
		}
		if len(messages) > 0 { // it answers or hangs up, and keeps nothing open
			buffer, rights := make([]byte, 4<<10), make([]byte, 64)
			_, used, _, _, _ := conn.ReadMsgUnix(buffer, rights)
			for _, f := range openRights(g, rights[:used]) {
				g.Expect(f.Close()).To(Succeed())
			}
		}
		g.Expect(conn.Close()).To(Succeed())
		g.Expect(greeting(o.Path)).To(Equal("old"), name)
		g.Expect(old.ctx.Err()).NotTo(HaveOccurred(), name)
	}
	_, err = start(t, "new", o)
	g.Expect(err).NotTo(HaveOccurred())
	g.Eventually(old.ctx.Done(), "10s").Should(BeClosed())
	g.Expect(context.Cause(old.ctx)).To(MatchError(handover.ErrTaken))
	g.Eventually(greeting, "10s").WithArguments(o.Path).Should(Equal("new"))
}

func openRights(g Gomega, rights []byte) []*os.File {
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(rights)
	g.Expect(err).NotTo(HaveOccurred())
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		g.Expect(err).NotTo(HaveOccurred())
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "taken"))
		}
	}
	return files
}

// TestTheOldOneMisbehaves: whatever answers on the hand-over socket, the new husk
// refuses to start and the socket stays whose it was.
func TestTheOldOneMisbehaves(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, o := place(t)
	g.Expect(os.Mkdir(filepath.Dir(o.Path), 0o700)).To(Succeed())
	listener := func(network, path string) *os.File {
		l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
		g.Expect(err).NotTo(HaveOccurred())
		t.Cleanup(func() { _ = l.Close() })
		f, err := l.File()
		g.Expect(err).NotTo(HaveOccurred())
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	main := listener("unix", o.Path)
	elsewhere := listener("unix", filepath.Join(dir, "elsewhere.sock"))
	packets := listener("unixpacket", filepath.Join(dir, "packets.sock"))
	pipe, w, err := os.Pipe()
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _, _ = pipe.Close(), w.Close() }()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: o.HandoverPath, Net: "unixpacket"})
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = l.Close() }()
	answer := make(chan func(*net.UnixConn), 1)
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			(<-answer)(conn)
			_ = conn.Close()
		}
	}()
	reply := func(text string, files ...*os.File) func(*net.UnixConn) {
		return func(conn *net.UnixConn) {
			_, _ = conn.Read(make([]byte, 4<<10))
			var fds []int
			for _, f := range files {
				fds = append(fds, int(f.Fd()))
			}
			_, _, _ = conn.WriteMsgUnix([]byte(text), unix.UnixRights(fds...), nil)
		}
	}
	for says, does := range map[string]func(*net.UnixConn){
		"hung up":            func(conn *net.UnixConn) { _, _ = conn.Read(make([]byte, 4<<10)) },
		"i/o timeout":        func(conn *net.UnixConn) { _, _ = conn.Read(make([]byte, 4<<10)); _, _ = conn.Read(make([]byte, 1)) },
		"invalid character":  reply("nonsense"),
		"not today":          reply(`{"version":1,"error":"not today"}`),
		"got 0 sockets":      reply(`{"version":1}`),
		"got 1 sockets":      reply(`{"version":1}`, main),
		"too long":           reply(`{"version":1}`, main, packets, pipe, pipe, pipe),
		"non-socket":         reply(`{"version":1}`, pipe, packets),
		"elsewhere.sock ins": reply(`{"version":1}`, elsewhere, packets),
		"not of type 1":      reply(`{"version":1}`, packets, main),
		"packets.sock inste": reply(`{"version":1}`, main, packets),
	} {
		answer <- does
		_, err := handover.Listen(t.Context(), o)
		g.Expect(errdefs.Is(err, errdefs.InUse)).To(BeTrue(), "%s: %v", says, err)
		g.Expect(err).To(MatchError(ContainSubstring(says)))
		g.Expect(o.Path).To(BeAnExistingFile())
	}
}

// childEnv makes this test's binary act as another process: see TestMain.
const childEnv = "HUSK_HANDOVER_TEST"

type childOrder struct {
	Do      string
	Options handover.Options
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		os.Exit(child(text))
	}
	os.Exit(m.Run())
}

// command is this binary as another process.
func command(g Gomega, order childOrder) *exec.Cmd {
	text, err := json.Marshal(order)
	g.Expect(err).NotTo(HaveOccurred())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	return cmd
}

// TestOnlyRootIsGivenTheSocket has nobody ask although the file's mode would let it.
func TestOnlyRootIsGivenTheSocket(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	dir, o := place(t)
	old, err := start(t, "old", o)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Chmod(dir, 0o755)).To(Succeed())
	g.Expect(os.Chmod(o.HandoverPath, 0o666)).To(Succeed())
	cmd := command(g, childOrder{Do: "ask", Options: o})
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), string(out))
	g.Expect(string(out)).To(Equal("no reply, 0 bytes of descriptors"))
	g.Expect(old.ctx.Err()).NotTo(HaveOccurred())

	root := command(g, childOrder{Do: "ask", Options: o}) // what the same question brings root
	out, err = root.CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), string(out))
	g.Expect(string(out)).To(HavePrefix(`{"version":1,"own":true}`))
}
