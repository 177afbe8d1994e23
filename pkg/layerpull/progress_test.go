package layerpull

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/images"
)

// reports collects the progress of a pull, and fails on calls that overlap.
type reports struct {
	t    *testing.T
	busy atomic.Bool
	mu   sync.Mutex
	got  []Progress
	at   []time.Time
}

func (r *reports) tell(p Progress) {
	if !r.busy.CompareAndSwap(false, true) {
		r.t.Error("two reports at once")
	}
	defer r.busy.Store(false)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got, r.at = append(r.got, p), append(r.at, time.Now())
}

func (r *reports) last() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) == 0 {
		return Progress{}
	}
	return r.got[len(r.got)-1]
}

func TestProgress(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	same := oneFile("/same")
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{same, {Random: 2 << 20}, same}, Compression: images.None})
	big, small := summary.Instances[0].Layers[1], summary.Instances[0].Layers[0]

	// Half of the large layer comes, then nothing until the half was reported.
	told := &reports{t: t}
	reg.flaky(t, big, func(w http.ResponseWriter, _ *http.Request, content []byte) {
		_, _ = w.Write(content[:len(content)/2])
		w.(http.Flusher).Flush()
		g.Eventually(func() int64 { return told.last().BytesDone }, "20s").Should(BeNumerically(">=", int64(1<<20)))
		_, _ = w.Write(content[len(content)/2:])
	})
	cfg := reg.config(t)
	cfg.Progress = told.tell
	img, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(img.Layers).To(Equal(3))
	g.Expect(img.Bytes).To(BeEquivalentTo(2<<20+len(marker)), "a layer twice counts once")

	all := small.Size + big.Size
	g.Expect(told.got[0]).To(Equal(Progress{Layers: 3, LayersDone: 1, Bytes: all}), "the layer that is there twice is fetched once")
	g.Expect(told.last()).To(Equal(Progress{Layers: 3, LayersDone: 3, Bytes: all, BytesDone: all}))
	g.Expect(len(told.got)).To(BeNumerically(">=", 3))
	g.Expect(slices.IsSortedFunc(told.got, func(a, b Progress) int { return int(a.BytesDone - b.BytesDone) })).To(BeTrue())
	for i := 1; i < len(told.at)-1; i++ { // between the first and the last, no more than ten a second
		g.Expect(told.at[i].Sub(told.at[0])).To(BeNumerically(">", time.Duration(i)*progressStep-progressStep/2))
	}

	// Again: it is there.
	told = &reports{t: t}
	cfg.Progress = told.tell
	img, err = Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(told.got).To(Equal([]Progress{{Layers: 3, LayersDone: 3}}))
	g.Expect(img.Layers).To(Equal(3))
	g.Expect(img.Bytes).To(BeEquivalentTo(2<<20 + len(marker)))

	// Another image: what the store has is not fetched.
	ref, summary = reg.push(t, images.Spec{Layers: []images.Layer{same, oneFile("/other")}, Compression: images.None})
	told = &reports{t: t}
	cfg.Progress = told.tell
	_, err = Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	other := summary.Instances[0].Layers[1].Size
	g.Expect(told.got[0]).To(Equal(Progress{Layers: 2, LayersDone: 1, Bytes: other}))
	g.Expect(told.last()).To(Equal(Progress{Layers: 2, LayersDone: 2, Bytes: other, BytesDone: other}))
}

// TestProgressOfAFailure: it ends with the pull, and not after it.
func TestProgressOfAFailure(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/a")}})
	reg.flaky(t, summary.Instances[0].Layers[0], func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusNotFound) })
	cfg, told := reg.config(t), &reports{t: t}
	cfg.Progress = told.tell
	_, err := Pull(t.Context(), ref, store, cfg)
	g.Expect(err).To(HaveOccurred())
	before := len(told.got)
	g.Expect(before).To(BeNumerically(">=", 2))
	g.Expect(told.last().LayersDone).To(BeZero())
	g.Consistently(func() int {
		told.mu.Lock()
		defer told.mu.Unlock()
		return len(told.got)
	}, 2*progressStep).Should(Equal(before))
}

// TestParallelLayers: as many layers at once as the configuration says, within bounds.
func TestParallelLayers(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	for _, tc := range []struct{ configured, want int }{{0, defaultParallelLayers}, {-1, defaultParallelLayers}, {1, 1}, {2, 2}, {64, MaxParallelLayers}} {
		g := NewWithT(t)
		reg, store := newRegistry(t), newStore(t)
		var layers []images.Layer
		for i := range MaxParallelLayers + 2 {
			layers = append(layers, images.Layer{Random: 1000 + int64(i)})
		}
		ref, summary := reg.push(t, images.Spec{Layers: layers, Compression: images.None})
		var at, most atomic.Int64
		var once sync.Once
		full := make(chan struct{}) // as many at once as there should be
		for _, l := range summary.Instances[0].Layers {
			reg.flaky(t, l, func(w http.ResponseWriter, _ *http.Request, content []byte) {
				n := at.Add(1)
				defer at.Add(-1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				if n >= int64(tc.want) {
					once.Do(func() { close(full) })
				}
				<-full
				_, _ = w.Write(content)
			})
		}
		cfg := reg.config(t)
		cfg.ParallelLayers = tc.configured
		cfg.Timeouts.Pull = 30 * time.Second // fewer than there should be would wait for ever
		_, err := Pull(t.Context(), ref, store, cfg)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(most.Load()).To(BeEquivalentTo(tc.want), "%+v", tc)
	}
}

// TestLayerOfAnotherPull: of two images with a layer in common that are pulled at once,
// one fetches it, and it is done for both.
func TestLayerOfAnotherPull(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	cfg := reg.config(t)
	same := oneFile("/same")
	first, summary := reg.push(t, images.Spec{Layers: []images.Layer{same, oneFile("/first")}})
	second, _ := reg.push(t, images.Spec{Layers: []images.Layer{same, oneFile("/second")}})
	asked, answer := make(chan struct{}), make(chan struct{})
	count := reg.flaky(t, summary.Instances[0].Layers[0], func(w http.ResponseWriter, _ *http.Request, content []byte) {
		close(asked) // twice would panic
		<-answer
		_, _ = w.Write(content)
	})
	var pulls sync.WaitGroup
	var firstErr, secondErr error
	pulls.Go(func() { _, firstErr = Pull(t.Context(), first, store, cfg) })
	<-asked
	told := &reports{t: t}
	waiting := cfg
	waiting.Progress = told.tell
	var img Image
	pulls.Go(func() { img, secondErr = Pull(t.Context(), second, store, waiting) })
	// Its own layer is done, and the other is waited for.
	g.Eventually(func() int { return told.last().LayersDone }, "20s").Should(Equal(1))
	close(answer)
	pulls.Wait()
	g.Expect(firstErr).NotTo(HaveOccurred())
	g.Expect(secondErr).NotTo(HaveOccurred())
	g.Expect(count.Load()).To(BeEquivalentTo(1))
	g.Expect(img.FetchedLayers).To(Equal(1))
	g.Expect(read(t, img.LayerDirs[0], "same")).To(Equal(marker))
	last := told.last()
	g.Expect(last).To(Equal(Progress{Layers: 2, LayersDone: 2, Bytes: last.Bytes, BytesDone: last.Bytes}))
	g.Expect(last.Bytes).To(BeNumerically(">", img.FetchedBytes), "what another fetched counts as done")
}
