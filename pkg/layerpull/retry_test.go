package layerpull

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// flaky answers GETs of one blob by each of the handlers in turn, and by the last
// of them ever after. A handler gets the blob's content.
func (r *testRegistry) flaky(t *testing.T, layer images.LayerSummary, answers ...func(http.ResponseWriter, *http.Request, []byte)) *atomic.Int64 {
	t.Helper()
	g := NewWithT(t)
	resp, err := http.Get(r.url("blobs", layer.Digest))
	g.Expect(err).NotTo(HaveOccurred())
	content, err := io.ReadAll(resp.Body)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(resp.Body.Close()).To(Succeed())
	count := &atomic.Int64{}
	r.lie(layer.Digest, func(w http.ResponseWriter, req *http.Request) {
		n := int(count.Add(1))
		answers[min(n, len(answers))-1](w, req, content)
	})
	return count
}

func whole(w http.ResponseWriter, _ *http.Request, content []byte) { _, _ = w.Write(content) }

func fails(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusBadGateway) }

// breaks sends half and closes the connection; it knows no ranges.
func breaks(w http.ResponseWriter, _ *http.Request, content []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	_, _ = w.Write(content[:len(content)/2])
}

// stalls sends half and then nothing.
func stalls(w http.ResponseWriter, req *http.Request, content []byte) {
	breaks(w, req, content)
	w.(http.Flusher).Flush()
	<-req.Context().Done()
}

// ranges sends what a range request asks for.
func ranges(w http.ResponseWriter, req *http.Request, content []byte) {
	http.ServeContent(w, req, "", time.Time{}, strings.NewReader(string(content)))
}

func TestBrokenLayers(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	type answer = func(http.ResponseWriter, *http.Request, []byte)
	for _, tc := range []struct {
		name    string
		answers []answer
		kind    errdefs.Kind // Internal: the pull succeeds
		most    int64
	}{
		{"request fails once", []answer{fails, whole}, errdefs.Internal, 2},
		{"request fails again and again", []answer{fails}, errdefs.RegistryUnavailable, maxRetries + 1},
		{"broken, and resumed by a range", []answer{breaks, ranges}, errdefs.Internal, 2},
		// containers/image asks for a range, is given the whole, and gives up.
		{"broken, without ranges", []answer{breaks, whole}, errdefs.Internal, 3},
		{"stalls once", []answer{stalls, whole}, errdefs.Internal, 2},
		{"stalls forever", []answer{stalls}, errdefs.RegistryUnavailable, maxRetries + 1},
		{"other bytes the second time", []answer{breaks, breaks, func(w http.ResponseWriter, _ *http.Request, content []byte) {
			_, _ = w.Write(append(content[:len(content)-1:len(content)-1], ^content[len(content)-1]))
		}}, errdefs.DigestMismatch, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			reg, store := newRegistry(t), newStore(t)
			ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{{Random: 3 << 20}}, Compression: images.None})
			count := reg.flaky(t, summary.Instances[0].Layers[0], tc.answers...)
			cfg := reg.config(t)
			cfg.Timeouts.Stall = 300 * time.Millisecond
			img, err := Pull(t.Context(), ref, store, cfg)
			g.Expect(count.Load()).To(BeNumerically("<=", tc.most), "requests")
			if tc.kind != errdefs.Internal {
				g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
				expectEmpty(t, store)
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(count.Load()).To(BeNumerically(">", 1), "nothing broke")
			g.Expect(read(t, img.LayerDirs[0], "random-0")).To(HaveLen(3 << 20))
		})
	}
}

// TestBackoff: a registry in trouble is asked less and less often, and one that says no
// is not asked again.
func TestBackoff(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	reg := newRegistry(t)
	ref, summary := reg.push(t, plainSpec())
	var at []time.Time // requests for one layer do not overlap
	reg.flaky(t, summary.Instances[0].Layers[0], func(w http.ResponseWriter, req *http.Request, content []byte) {
		at = append(at, time.Now())
		fails(w, req, content)
	})
	expectRefused(t, ref, reg.config(t), errdefs.RegistryUnavailable)
	g.Expect(at).To(HaveLen(maxRetries + 1))
	for n := range maxRetries {
		g.Expect(at[n+1].Sub(at[n])).To(BeNumerically(">=", firstBackoff<<n))
	}

	for _, status := range []int{http.StatusNotFound, http.StatusForbidden} {
		count := reg.flaky(t, summary.Instances[0].Layers[0], func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(status) })
		_, err := Pull(t.Context(), ref, newStore(t), reg.config(t))
		g.Expect(err).To(HaveOccurred())
		g.Expect(count.Load()).To(BeEquivalentTo(1), "%d: %v", status, err)
	}
}

// TestDeadlines: a registry that never quite stalls does not hold a pull for ever.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	for name, timeouts := range map[string]Timeouts{
		"layer": {Layer: 300 * time.Millisecond}, "pull": {Pull: 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			reg, store := newRegistry(t), newStore(t)
			ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{{Random: 1 << 20}}, Compression: images.None})
			reg.flaky(t, summary.Instances[0].Layers[0], func(w http.ResponseWriter, req *http.Request, content []byte) {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for _, b := range content {
					select {
					case <-tick.C:
					case <-req.Context().Done():
						return
					}
					_, _ = w.Write([]byte{b})
					w.(http.Flusher).Flush()
				}
			})
			cfg := reg.config(t)
			cfg.Timeouts = timeouts
			_, err := Pull(t.Context(), ref, store, cfg)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
			expectEmpty(t, store)
		})
	}
}

// TestRatio: the bytes of a bomb are bounded by its size long before the layer's limit.
func TestRatio(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	size := int64(ratioGrace + 32<<20)
	reg := newRegistry(t)
	ref, _ := reg.push(t, images.Spec{Layers: []images.Layer{zeroFile(size)}, Compression: images.Zstd})
	for _, tc := range []struct {
		ratio int
		ok    bool
	}{{0, false}, {1 << 20, true}} {
		g, store, cfg := NewWithT(t), newStore(t), reg.config(t)
		cfg.Limits.Ratio = tc.ratio
		img, err := Pull(t.Context(), ref, store, cfg)
		if tc.ok {
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(stat(t, filepath.Join(img.LayerDirs[0], "zeros")).Size).To(Equal(size))
			continue
		}
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
		g.Expect(err).To(MatchError(ContainSubstring("more than 500 times its size")))
		expectEmpty(t, store)
	}
}
