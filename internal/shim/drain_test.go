package shim

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/task"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
)

func mkfifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// write writes as the copy of containerd's task service does: it opens, writes, closes.
// Without a reader it would block.
func write(t *testing.T, path, text string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s for writing: %v", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// readLater reads path after a while, as CRI-O does; the function it returns waits for
// that and returns what was read.
func readLater(t *testing.T, path string, after time.Duration) func() string {
	t.Helper()
	done := make(chan string, 1)
	go func() {
		time.Sleep(after)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) // waits for a writer
		if err != nil {
			t.Error(err)
		}
		f := os.NewFile(uintptr(fd), path)
		data, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Error(err)
		}
		done <- string(data)
	}()
	return func() string {
		select {
		case text := <-done:
			return text
		case <-time.After(10 * time.Second):
			t.Fatal("the reader has no end")
			return ""
		}
	}
}

// held says whether anybody has path open for reading.
func held(path string) bool { return !fifo{path: path}.ended() }

// hold returns path as an exec's FIFO.
func hold(t *testing.T, path string) []fifo {
	t.Helper()
	var o outputs
	o.hold(t.Context(), "e", path)
	return o.take("e")
}

func TestDrainWaitsForTheReader(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]time.Duration{"at once": 0, "late": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			path, empty := mkfifo(t), mkfifo(t)
			fifos := append(hold(t, path), hold(t, empty)...)
			g.Expect(fifos).To(HaveLen(2))
			write(t, path, "x\n") // and its writer is gone before the reader comes
			out := readLater(t, path, after)
			g.Expect(drain(t.Context(), fifos, 10*time.Second)).To(BeTrue())
			g.Expect(held(path)).To(BeFalse(), "the reader has seen the end")
			g.Expect(out()).To(Equal("x\n"))
			g.Expect(held(empty)).To(BeFalse())
		})
	}
}

func TestDrainGivesUp(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name     string
		canceled bool
		timeout  time.Duration
	}{
		{"after the timeout", false, 20 * time.Millisecond},
		{"with no time at all", false, 0},
		{"when ctx is at its end", true, time.Hour},
	} {
		g := NewWithT(t)
		ctx := t.Context()
		if tc.canceled {
			ctx = canceled
		}
		path := mkfifo(t)
		fifos := hold(t, path)
		write(t, path, "nobody reads this")
		g.Expect(drain(ctx, fifos, tc.timeout)).To(BeFalse(), tc.name)
		g.Expect(held(path)).To(BeFalse(), tc.name)
	}
}

// A client need not read both outputs, nor close what it has read.
func TestDrainDoesNotWaitLongForAnIdleReader(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := mkfifo(t)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = unix.Close(fd) }()
	begin := time.Now()
	g.Expect(drain(t.Context(), hold(t, path), time.Hour)).To(BeTrue())
	g.Expect(time.Since(begin)).To(BeNumerically("<", 10*time.Second))
}

func TestOnlyFIFOsAreHeld(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	file := filepath.Join(t.TempDir(), "file")
	g.Expect(os.WriteFile(file, nil, 0o600)).To(Succeed())
	for _, path := range []string{"", file, "file://" + file, "/dev/null", "/no/such", t.TempDir(), file + "/below"} {
		g.Expect(hold(t, path)).To(BeEmpty(), path)
	}
	g.Expect(drain(t.Context(), nil, 0)).To(BeTrue())
}

func TestUnclaimedOutputExpires(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := mkfifo(t)
	var o outputs
	o.hold(t.Context(), "e", path)
	g.Expect(held(path)).To(BeTrue())
	o.expire("e", time.Millisecond)
	o.expire("unknown", time.Millisecond)
	g.Eventually(func() bool { return held(path) }).Should(BeFalse())
	g.Expect(o.take("e")).To(BeEmpty())
}

func TestOutputOfExecs(t *testing.T) {
	t.Parallel()
	r := newServiceRig(t, nil)
	ctx := inNamespace(t)
	NewWithT(t).Expect(r.Create(ctx, r.request(t, "s1", asSandbox))).NotTo(BeNil())
	exec := func() (string, error) {
		path := mkfifo(t)
		_, err := r.Exec(ctx, &taskapi.ExecProcessRequest{ID: "s1", ExecID: filepath.Dir(path), Stdout: path, Stderr: path})
		return path, err
	}
	t.Run("is kept until its delete", func(t *testing.T) {
		g := NewWithT(t)
		path, err := exec()
		g.Expect(err).NotTo(HaveOccurred())
		execID := filepath.Dir(path)
		write(t, path, "x")
		_, err = r.Wait(ctx, &taskapi.WaitRequest{ID: "s1", ExecID: execID})
		g.Expect(err).NotTo(HaveOccurred(), "not held up")
		out := readLater(t, path, 20*time.Millisecond)
		resp, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: "s1", ExecID: execID})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(resp.ExitStatus).To(Equal(uint32(7)))
		g.Expect(out()).To(Equal("x"))
		g.Expect(held(path)).To(BeFalse())
		g.Expect(r.inner.status).To(HaveKeyWithValue("s1", task.Status_CREATED))
	})
	t.Run("is not kept for one that fails", func(t *testing.T) {
		g := NewWithT(t)
		r.inner.execErr = errors.New("no")
		path, err := exec()
		r.inner.execErr = nil
		g.Expect(err).To(HaveOccurred())
		g.Expect(held(path)).To(BeFalse())
	})
	t.Run("is released with the container", func(t *testing.T) {
		g := NewWithT(t)
		path, err := exec()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(held(path)).To(BeTrue())
		c := r.find("s1")
		_, err = r.Delete(ctx, &taskapi.DeleteRequest{ID: "s1"})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(held(path)).To(BeFalse())
		c.outputs.hold(ctx, "late", path)
		g.Expect(held(path)).To(BeFalse(), "an exec that was under way")
	})
}
