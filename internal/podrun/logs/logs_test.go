package logs

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	. "github.com/onsi/gomega"
)

// read returns what is printed of the log in dir.
func read(t *testing.T, dir string, o ReadOptions) (stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	o.Stdout, o.Stderr = &out, &err
	NewWithT(t).Expect(Read(t.Context(), dir, o)).To(Succeed())
	return out.String(), err.String()
}

// write writes to an output, which never fails.
func write(t *testing.T, o *Output, text string) {
	t.Helper()
	n, err := o.Write([]byte(text))
	NewWithT(t).Expect(n, err).To(Equal(len(text)))
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	w, err := Create(dir)
	g.Expect(err).NotTo(HaveOccurred())
	out, errs := w.Stream(Stdout), w.Stream(Stderr)
	long := strings.Repeat("x", 3*maxLine+7)
	for _, part := range []string{"one\ntw", "o\n\n", "thr", "ee\n" + long, "\nno end"} {
		write(t, out, part)
	}
	write(t, errs, "oops\n")
	out.End()
	g.Expect(w.Close()).To(Succeed())

	stdout, stderr := read(t, dir, ReadOptions{Tail: -1})
	g.Expect(stdout).To(Equal("one\ntwo\n\nthree\n" + long + "\nno end"))
	g.Expect(stderr).To(Equal("oops\n"))
	stdout, _ = read(t, dir, ReadOptions{Tail: -1, Timestamps: true})
	g.Expect(stdout).To(MatchRegexp(`(?m)^20\d\d-\d\d-\d\dT\S+Z three$`))
	g.Expect(strings.Count(stdout, "Z xxx")).To(Equal(1), "the parts of a line have one time")
	stdout, stderr = read(t, dir, ReadOptions{Tail: 1})
	g.Expect(stdout+stderr).To(Equal("no endoops\n"), "a line without an end is none")
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).To(MatchRegexp(`(?m)^\S+ stdout F one$`))
	g.Expect(string(data)).To(MatchRegexp(`(?m)^\S+ stdout P no end$`))
}

// TestLogIsBounded: a container that writes without end costs two files, and the end of
// what it wrote is there.
func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	w, err := Create(dir)
	g.Expect(err).NotTo(HaveOccurred())
	w.limit = 4 << 10
	out := w.Stream(Stdout)
	for range 1000 {
		write(t, out, "0123456789012345678901234567890123456789\n")
	}
	write(t, out, "last\n")
	g.Expect(w.Close()).To(Succeed())
	entries, err := os.ReadDir(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(entries).To(HaveLen(2))
	for _, e := range entries {
		info, err := e.Info()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(info.Size()).To(BeNumerically("<=", w.limit))
	}
	stdout, _ := read(t, dir, ReadOptions{Tail: -1})
	g.Expect(stdout).To(HaveSuffix("9\nlast\n"))
}

// watched closes seen when text has come.
type watched struct {
	mu   sync.Mutex
	got  bytes.Buffer
	text string
	seen chan struct{}
	once sync.Once
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.got.Write(p)
	if strings.Contains(w.got.String(), w.text) {
		w.once.Do(func() { close(w.seen) })
	}
	return n, err
}

func TestFollow(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	w, err := Create(dir)
	g.Expect(err).NotTo(HaveOccurred())
	w.limit = 230
	first := strings.Repeat("y", 170) + "\n"
	out := w.Stream(Stdout)
	var ended atomic.Bool
	to := &watched{text: first, seen: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		done <- Read(t.Context(), dir, ReadOptions{
			Tail: -1, Stdout: to, Stderr: to, Ended: func() (bool, error) { return ended.Load(), nil },
		})
	}()
	write(t, out, first)
	<-to.seen
	write(t, out, "second\n") // for which the file is changed
	ended.Store(true)
	g.Expect(<-done).To(Succeed())
	g.Expect(to.got.String()).To(Equal(first + "second\n"))
	g.Expect(w.Close()).To(Succeed())
}

func TestFollowEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	NewWithT(t).Expect(Read(ctx, t.TempDir(), ReadOptions{Tail: -1, Ended: func() (bool, error) { return false, nil }})).To(Succeed())
}

// TestWhatIsNoEntry is not printed, and what is too long for one ends the reading: the
// file is somebody else's.
func TestWhatIsNoEntry(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	file := filepath.Join(dir, fileName)
	g.Expect(os.WriteFile(file, []byte("no entry\n2026 stdin F x\n2026 stdout X x\n2026 stdout F good\n"), fileMode)).To(Succeed())
	stdout, stderr := read(t, dir, ReadOptions{Tail: -1})
	g.Expect(stdout + stderr).To(Equal("good\n"))
	g.Expect(os.WriteFile(file, bytes.Repeat([]byte("z"), maxEntry+1), fileMode)).To(Succeed())
	g.Expect(Read(t.Context(), dir, ReadOptions{Tail: -1})).NotTo(Succeed())
}
