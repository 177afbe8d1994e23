package taskclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func streams(t *testing.T, cfg StreamsConfig) *Streams {
	t.Helper()
	s, err := NewStreams(filepath.Join(t.TempDir(), "a", "b"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// end opens the shim's end of a FIFO.
func end(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestOutput(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var out, errOut bytes.Buffer
	s := streams(t, StreamsConfig{Stdout: &out, Stderr: &errOut})
	g.Expect(s.IO().Stdin).To(BeEmpty())
	data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<17)
	// A writer that opens and closes more than once, and late, loses nothing.
	for i := range 4 {
		w := end(t, s.IO().Stdout, os.O_WRONLY)
		part := len(data) / 4
		_, err := w.Write(data[i*part : (i+1)*part])
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(w.Close()).To(Succeed())
	}
	w := end(t, s.IO().Stderr, os.O_WRONLY)
	go func() {
		_, _ = w.WriteString("late")
		_ = w.Close()
	}()
	g.Expect(s.Wait(t.Context())).To(Succeed())
	g.Expect(out.Bytes()).To(Equal(data))
	g.Expect(errOut.String()).To(Equal("late"))
	g.Expect(s.Wait(t.Context())).To(Succeed(), "again")
}

// The shim died before it opened anything.
func TestOutputThatNobodyOpened(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := streams(t, StreamsConfig{Stdout: io.Discard, Stdin: strings.NewReader("x")})
	s.quiet = time.Hour
	g.Expect(s.Wait(t.Context())).To(Succeed())
	g.Expect(s.CopyStdin(t.Context())).To(Succeed())
}

func TestOutputThatStaysOpen(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var out syncBuffer
	s := streams(t, StreamsConfig{Stdout: &out})
	s.quiet = 50 * time.Millisecond
	w := end(t, s.IO().Stdout, os.O_WRONLY)
	_, err := w.WriteString("said")
	g.Expect(err).NotTo(HaveOccurred())
	err = s.Wait(t.Context())
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	g.Expect(out.String()).To(Equal("said"))

	s.quiet = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.Expect(errdefs.KindOf(s.Wait(ctx))).To(Equal(errdefs.Canceled))
	ended := make(chan error, 1)
	go func() { ended <- s.Wait(t.Context()) }()
	g.Expect(s.Close()).To(Succeed())
	g.Eventually(ended, 5*time.Second).Should(Receive()) // by the end of the streams, or of the output
}

// slowWriter takes its time for each write, until it is told to go on.
type slowWriter struct {
	bytes.Buffer
	begun, release chan struct{}
}

func (w *slowWriter) Write(p []byte) (int, error) {
	select {
	case w.begun <- struct{}{}:
	default:
	}
	<-w.release
	return w.Buffer.Write(p)
}

// Who reads slowly gets all of it: that is not silence.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	out := &slowWriter{begun: make(chan struct{}, 1), release: make(chan struct{})}
	s := streams(t, StreamsConfig{Stdout: out})
	s.quiet = 20 * time.Millisecond
	w := end(t, s.IO().Stdout, os.O_WRONLY)
	_, err := w.WriteString("all of it")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(w.Close()).To(Succeed())
	g.Eventually(out.begun, 5*time.Second).Should(Receive())
	ended := make(chan error, 1)
	go func() { ended <- s.Wait(t.Context()) }()
	g.Consistently(ended, 10*s.quiet).ShouldNot(Receive())
	close(out.release)
	g.Eventually(ended, 5*time.Second).Should(Receive(BeNil()))
	g.Expect(out.String()).To(Equal("all of it"))
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

// A process whose output cannot be written must not hang.
func TestOutputThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := streams(t, StreamsConfig{Stdout: failingWriter{}})
	w := end(t, s.IO().Stdout, os.O_WRONLY)
	_, err := w.Write(make([]byte, 1<<20)) // more than a FIFO holds
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(w.Close()).To(Succeed())
	g.Expect(s.Wait(t.Context())).To(MatchError(ContainSubstring("disk full")))
}

func TestInput(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	data := strings.Repeat("0123456789abcde\n", 1<<16)
	s := streams(t, StreamsConfig{Stdin: strings.NewReader(data), Stdout: io.Discard})
	r := end(t, s.IO().Stdin, os.O_RDONLY)
	ended := make(chan error, 1)
	go func() { ended <- s.CopyStdin(t.Context()) }()
	got, err := io.ReadAll(r) // up to the end: the FIFO is closed
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(got)).To(Equal(data))
	g.Expect(<-ended).NotTo(HaveOccurred())
}

func TestInputThatEnds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		stdin io.Reader
		end   func(cancel func(), s *Streams)
		kind  errdefs.Kind
	}{
		"ctx, while it is read":      {blockedReader{}, func(cancel func(), _ *Streams) { cancel() }, errdefs.Canceled},
		"ctx, while it is written":   {endlessReader{}, func(cancel func(), _ *Streams) { cancel() }, errdefs.Canceled},
		"Close, while it is written": {endlessReader{}, func(_ func(), s *Streams) { _ = s.Close() }, errdefs.Canceled},
		"it fails":                   {io.MultiReader(strings.NewReader("x"), failingReader{}), func(func(), *Streams) {}, errdefs.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			s := streams(t, StreamsConfig{Stdin: tc.stdin})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- s.CopyStdin(ctx) }()
			tc.end(cancel, s)
			var err error
			g.Eventually(ended, 5*time.Second).Should(Receive(&err))
			g.Expect(err).To(HaveOccurred())
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
		})
	}
}

type blockedReader struct{}

func (blockedReader) Read([]byte) (int, error) { select {} }

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) { return len(p), nil }

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("no disk") }

func TestTerminalHasOneOutput(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := streams(t, StreamsConfig{Terminal: true, Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard})
	g.Expect(s.IO().Stderr).To(BeEmpty())
	g.Expect(s.IO().Stdout).NotTo(BeEmpty())
	g.Expect(s.Wait(t.Context())).To(Succeed())
}

func TestNoStreams(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := streams(t, StreamsConfig{})
	g.Expect(s.IO()).To(BeZero())
	g.Expect(s.Wait(t.Context())).To(Succeed())
	g.Expect(s.CopyStdin(t.Context())).To(Succeed())
}

// Close releases everything: no FIFO is left, and a writer learns that nobody reads.
func TestCloseStreams(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	s, err := NewStreams(dir, StreamsConfig{Stdin: strings.NewReader("x"), Stdout: io.Discard, Stderr: io.Discard})
	g.Expect(err).NotTo(HaveOccurred())
	w, r := end(t, s.IO().Stdout, os.O_WRONLY), end(t, s.IO().Stdin, os.O_RDONLY)
	g.Expect(s.Close()).To(Succeed())
	g.Expect(s.Close()).To(Succeed())
	g.Expect(os.ReadDir(dir)).To(BeEmpty())
	g.Eventually(func() error { _, err := w.WriteString("x"); return err }, 5*time.Second).Should(MatchError(unix.EPIPE))
	_, err = r.Read(make([]byte, 1))
	g.Expect(err).To(Equal(io.EOF))

	// Streams that cannot be made leave nothing.
	file := filepath.Join(dir, "file")
	g.Expect(os.WriteFile(file, nil, 0o600)).To(Succeed())
	_, err = NewStreams(filepath.Join(file, "x"), StreamsConfig{Stdout: io.Discard})
	g.Expect(err).To(MatchError(ContainSubstring("make the streams")))
}
