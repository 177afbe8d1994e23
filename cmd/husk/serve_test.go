package main

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// socketDir is short: the path of a socket has at most 107 bytes.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "husk")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { NewWithT(t).Expect(os.RemoveAll(dir)).To(Succeed()) })
	return dir
}

func TestListenTakesOverAStaleSocket(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(socketDir(t), "new", "crio.sock")
	first, err := listen(t.Context(), path)
	g.Expect(err).NotTo(HaveOccurred())
	info, err := os.Stat(path)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(BeEquivalentTo(socketMode))

	_, err = listen(t.Context(), path)
	g.Expect(errdefs.Is(err, errdefs.InUse)).To(BeTrue(), "one that lives keeps it: %v", err)
	g.Expect(path).To(BeAnExistingFile())

	// What a husk that was killed leaves.
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	g.Expect(first.Close()).To(Succeed())
	g.Expect(path).To(BeAnExistingFile())
	second, err := listen(t.Context(), path)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(second.Close()).To(Succeed())
}

func TestListenRemovesNothingElse(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(socketDir(t), "crio.sock")
	g.Expect(os.WriteFile(path, []byte("precious"), 0o600)).To(Succeed())
	_, err := listen(t.Context(), path)
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
	g.Expect(os.ReadFile(path)).To(BeEquivalentTo("precious"))
}

func TestCheckSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g := NewWithT(t)
	g.Expect(os.Mkdir(filepath.Join(dir, "run"), 0o700)).To(Succeed())
	g.Expect(os.Symlink("run", filepath.Join(dir, "var-run"))).To(Succeed())
	for _, c := range []struct {
		listen, backend string
		ok              bool
	}{
		{"run/crio.sock", "run/backend.sock", true},
		{"run/crio.sock", "run/crio.sock", false},
		{"run/crio.sock", "run/../run//crio.sock", false},
		{"var-run/crio.sock", "run/crio.sock", false},
		{"var-run/crio/crio.sock", "run/crio/crio.sock", false}, // the directory is yet to be made
		{"var-run/crio/crio.sock", "run/husk/crio.sock", true},
	} {
		err := checkSockets(config.Config{Listen: filepath.Join(dir, c.listen)}, dir+"/"+c.backend)
		g.Expect(err == nil).To(Equal(c.ok), "%s before %s", c.listen, c.backend)
	}
}

func TestCheckHandlers(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	crio := crioconf.Config{Handlers: map[string]crioconf.Handler{"husk": {}}}
	g.Expect(checkHandlers(config.Config{}, crio)).To(Succeed())
	g.Expect(checkHandlers(config.Config{DefaultHandler: "husk", AssumeHandler: "husk"}, crio)).To(Succeed())
	g.Expect(checkHandlers(config.Config{DefaultHandler: "hsuk"}, crio)).To(MatchError(ContainSubstring("default_handler")))
	g.Expect(checkHandlers(config.Config{AssumeHandler: "hsuk"}, crio)).To(MatchError(ContainSubstring("assume_handler")))
}

func TestStoreOptions(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	got := storeOptions(crioconf.Storage{Root: "/r", RunRoot: "/rr", ImageStore: "/i", Driver: "d", Options: []string{"o"}})
	g.Expect([]any{got.GraphRoot, got.RunRoot, got.ImageStore, got.Driver, got.DriverOptions}).
		To(Equal([]any{"/r", "/rr", "/i", "d", []string{"o"}}))
	system, err := systemStorage()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(system.Root).NotTo(BeEmpty())
	g.Expect(system.RunRoot).NotTo(BeEmpty())
}

// TestServe starts the daemon before CRI-O, refuses a second one, and ends it.
func TestServe(t *testing.T) {
	g := NewWithT(t)
	socket := filepath.Join(socketDir(t), "front.sock")
	p := newPlace(t)
	text, err := os.ReadFile(p.husk)
	g.Expect(err).NotTo(HaveOccurred())
	own := filepath.Join(p.dir, "front.sock")
	p.write(t, "husk.toml", strings.ReplaceAll(string(text), own, socket))

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	app := newApp()
	app.Writer, app.ErrWriter = io.Discard, io.Discard
	go func() { done <- app.RunContext(ctx, []string{"husk", "--config", p.husk, "serve"}) }()
	g.Eventually(func() error {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn.Close()
		}
		return err
	}).WithTimeout(10 * time.Second).Should(Succeed())

	_, err = p.run(t, "", "serve")
	g.Expect(exitCode(err)).To(Equal(exitRefused), "%v", err)
	cancel()
	g.Eventually(done).WithTimeout(10 * time.Second).Should(Receive(BeNil()))
	g.Expect(socket).NotTo(BeAnExistingFile())

	for extra, says := range map[string]string{
		`assume_handler = "hsuk"`:                   "hsuk",
		`backend = "` + socket + `"`:                "both listen",
		`log_level = "loud"`:                        "log_level",
		`crio_config_dir_typo = "/etc/crio/x.conf"`: "unknown key",
	} {
		p.write(t, "husk.toml", strings.ReplaceAll(string(text), own, socket)+extra+"\n")
		_, err = p.run(t, "", "serve")
		g.Expect(err).To(MatchError(ContainSubstring(says)))
		g.Expect(socket).NotTo(BeAnExistingFile())
	}
}
