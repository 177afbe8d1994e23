package podrun

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestLock(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "locks", "a")
	g.Expect(held(path)).To(BeFalse())
	g.Expect(path).NotTo(BeAnExistingFile(), "to look leaves nothing")
	l, err := tryLock(path)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(held(path)).To(BeTrue())
	_, err = tryLock(path)
	g.Expect(errors.Is(err, errHeld)).To(BeTrue())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = takeLock(ctx, path)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled))
	free := make(chan error, 1)
	go func() { free <- awaitFree(t.Context(), path) }()
	l.release()
	g.Expect(<-free).To(Succeed())
	g.Expect(path).NotTo(BeAnExistingFile())
}

// TestLockIsOnes: however many take and remove it, no two hold it at once.
func TestLockIsOnes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "a")
	var holders, most, taken atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				l, err := tryLock(path)
				if errors.Is(err, errHeld) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				taken.Add(1)
				if n := holders.Add(1); n > 1 {
					most.Store(n)
				}
				holders.Add(-1)
				l.release()
			}
		})
	}
	all.Wait()
	g.Expect(most.Load()).To(BeZero())
	g.Expect(taken.Load()).To(BeNumerically(">", 0))
}

// TestStaleLock: a file that a killed holder has left is nobody's.
func TestStaleLock(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "a")
	g.Expect(os.WriteFile(path, nil, lockMode)).To(Succeed())
	g.Expect(held(path)).To(BeFalse())
	g.Expect(path).NotTo(BeAnExistingFile())
}
