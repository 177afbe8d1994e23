package main

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/urfave/cli/v2"
)

// screen is a terminal that many may write to.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func TestProgress(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	quick := new(screen)
	draw(quick, "pulling a", time.Now())("3 requests", nil)
	g.Expect(quick.String()).To(HavePrefix("\r\x1b[Kpulling a: 3 requests, 0."), "what is over at once is not announced")

	slow := new(screen)
	done := draw(slow, "pulling b", time.Now())
	g.Eventually(slow.String).Should(ContainSubstring("pulling b ("))
	done("never shown", errors.New("refused"))
	g.Expect(slow.String()).To(And(HaveSuffix("\r\x1b[K"), Not(ContainSubstring("never shown"))), "the error has the line")
}

// TestProgressOnlyOnTerminals writes to a file, as a script's standard error is.
func TestProgressOnlyOnTerminals(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, err := os.CreateTemp(t.TempDir(), "stderr")
	g.Expect(err).NotTo(HaveOccurred())
	c := cli.NewContext(&cli.App{ErrWriter: f}, nil, nil)
	progress(c, "pulling a")("done", nil)
	info, err := f.Stat()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Size()).To(BeZero())
}
