package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

// socketDir is short: the path of a socket has at most 107 bytes.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "husk")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { NewWithT(t).Expect(os.RemoveAll(dir)).To(Succeed()) })
	return dir
}

// TestServe starts the daemon before CRI-O, has a second one take its socket over,
// refuses a third one that may not, and ends the second.
func TestServe(t *testing.T) {
	g := NewWithT(t)
	dir := socketDir(t)
	socket := filepath.Join(dir, "front.sock")
	p := newPlace(t)
	text, err := os.ReadFile(p.husk)
	g.Expect(err).NotTo(HaveOccurred())
	own := filepath.Join(p.dir, "front.sock")
	configure := func(offer, extra string) {
		p.write(t, "husk.toml", strings.ReplaceAll(string(text), own, socket)+
			"handover_socket = \""+filepath.Join(dir, offer)+"\"\n"+extra+"\n")
	}
	start := func(ctx context.Context) (chan error, *bytes.Buffer) { // the log may be read when it has ended
		done, logged := make(chan error, 1), new(bytes.Buffer)
		app := newApp()
		app.Writer, app.ErrWriter = io.Discard, logged
		go func() { done <- app.RunContext(ctx, []string{"husk", "--config", p.husk, "serve"}) }()
		return done, logged
	}
	answers := func() error {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn.Close()
		}
		return err
	}
	configure("offer.sock", "")
	first, firstLog := start(t.Context())
	g.Eventually(answers).WithTimeout(10 * time.Second).Should(Succeed())
	g.Eventually(filepath.Join(dir, "offer.sock")).WithTimeout(10 * time.Second).Should(BeAnExistingFile())

	ctx, cancel := context.WithCancel(t.Context())
	second, secondLog := start(ctx)
	g.Eventually(first).WithTimeout(10 * time.Second).Should(Receive(BeNil()))
	g.Expect(firstLog.String()).To(MatchRegexp(`stopped serving.*another husk has taken the socket over`))
	g.Expect(answers()).To(Succeed())

	configure("other.sock", "")
	_, err = p.run(t, "", "serve")
	g.Expect(exitCode(err)).To(Equal(exitRefused), "%v", err)
	g.Expect(answers()).To(Succeed())
	cancel()
	g.Eventually(second).WithTimeout(10 * time.Second).Should(Receive(BeNil()))
	g.Expect(secondLog.String()).To(ContainSubstring("stopped serving"))
	g.Expect(socket).NotTo(BeAnExistingFile())

	for extra, says := range map[string]string{
		`assume_handler = "hsuk"`:                   "hsuk",
		`backend = "` + socket + `"`:                "remove backend",
		`log_level = "loud"`:                        "log_level",
		`record_ttl = "1m"`:                         "record_ttl",
		`crio_config_dir_typo = "/etc/crio/x.conf"`: "unknown key",
	} {
		configure("offer.sock", extra)
		_, err = p.run(t, "", "serve")
		g.Expect(err).To(MatchError(ContainSubstring(says)))
		g.Expect(socket).NotTo(BeAnExistingFile())
	}
}
