package flock

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// holdEnv makes the test binary a process that holds the lock at a path until it is killed,
// or its standard input ends.
const holdEnv = "HUSK_TEST_HOLD_LOCK"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdEnv); path != "" {
		l, err := Try(path)
		if err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("held\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		l.Release()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestTry(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "lock")
	l, err := Try(path)
	g.Expect(err).NotTo(HaveOccurred())
	_, err = Try(path)
	g.Expect(err).To(MatchError(ErrHeld))
	l.Release()
	l, err = Try(path)
	g.Expect(err).NotTo(HaveOccurred())
	l.Remove()
	g.Expect(path).NotTo(BeAnExistingFile())
	_, err = Try(filepath.Join(t.TempDir(), "no", "folder"))
	g.Expect(err).To(MatchError(os.ErrNotExist))
}

func TestAKilledHolderLeavesNoLock(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "lock")
	holder := exec.CommandContext(t.Context(), os.Args[0])
	holder.Env = append(os.Environ(), holdEnv+"="+path)
	_, err := holder.StdinPipe() // stays open: Wait closes it
	g.Expect(err).NotTo(HaveOccurred())
	out, err := holder.StdoutPipe()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(holder.Start()).To(Succeed())
	line, err := bufio.NewReader(out).ReadString('\n')
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(line).To(Equal("held\n"))
	_, err = Try(path)
	g.Expect(err).To(MatchError(ErrHeld))
	g.Expect(holder.Process.Kill()).To(Succeed())
	g.Expect(holder.Wait()).To(MatchError("signal: killed"))
	_, err = Try(path)
	g.Expect(err).NotTo(HaveOccurred())
}

// TestARemovedFileKeepsNobodyOut: who waited for a lock whose file was removed gets that
// of the file that others open.
func TestARemovedFileKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Try(path)
	g.Expect(err).NotTo(HaveOccurred())
	got := make(chan *Lock)
	go func() {
		l, err := Take(t.Context(), path)
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	g.Consistently(got, 10*poll).ShouldNot(Receive(), "it waits for the first one")
	g.Expect(os.Remove(path)).To(Succeed()) // as a reset of a storage does, below a holder
	second := <-got
	defer first.Release()
	_, err = Try(path)
	g.Expect(err).To(MatchError(ErrHeld))
	second.Release()
}

func TestMutex(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "lock")
	one, other := NewMutex(path), NewMutex(path) // as two processes have it
	inside, worst := 0, 0
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			release, err := []*Mutex{one, other}[i%2].Acquire(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			inside++
			worst = max(worst, inside)
			inside--
		})
	}
	wg.Wait()
	g.Expect(worst).To(Equal(1))

	release, err := one.Acquire(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	for _, m := range []*Mutex{one, other} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err = m.Acquire(ctx)
		cancel()
		g.Expect(err).To(MatchError(context.DeadlineExceeded))
	}
	release()
	release, err = other.Acquire(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	release()

	gone := NewMutex(filepath.Join(t.TempDir(), "gone", "lock"))
	for range 2 { // a failure leaves it free
		_, err = gone.Acquire(t.Context())
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable))
	}
}
