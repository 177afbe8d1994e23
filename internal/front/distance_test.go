package front

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/manifestonly"
)

// TestProgressLines: a line every ten seconds, with numbers that the manifest allows.
func TestProgressLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewWithT(t)
		var out bytes.Buffer
		far := &distance{img: manifestonly.Image{Layers: 3, LayerBytes: 1000}}
		stopped := make(chan struct{})
		var telling sync.WaitGroup
		telling.Go(func() { far.tell(t.Context(), slog.New(slog.NewTextHandler(&out, nil)), stopped) })
		time.Sleep(progressEvery - 1)
		g.Expect(out.Len()).To(BeZero(), "short pulls say nothing in between")
		far.set(sandboxes.Progress{Layers: 2, LayersDone: 1, Bytes: 800, BytesDone: 300})
		time.Sleep(2 * time.Nanosecond)
		far.set(sandboxes.Progress{Layers: 99, LayersDone: 99, Bytes: 1 << 40, BytesDone: 1 << 39})
		time.Sleep(progressEvery)
		close(stopped)
		telling.Wait()
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		g.Expect(lines).To(HaveLen(2))
		g.Expect(lines[0]).To(ContainSubstring("layers_done=1 layers=2 bytes_done=300 bytes=800 took=10s"))
		g.Expect(lines[1]).To(ContainSubstring("layers_done=3 layers=3 bytes_done=1000 bytes=1000 took=20s"))
		g.Expect(far.String()).To(Equal("3 of 3 layers and 1000 of 1000 bytes were there"))
	})
}
