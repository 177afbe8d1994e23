package daemon

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/huskconf"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// opened is a daemon with a store of its own.
func opened(t *testing.T) *daemon {
	t.Helper()
	p := place{huskconf.New(t)}
	d, _, _ := p.started(t)
	var err error
	d.store, err = cstore.Open(cstore.Options{GraphRoot: filepath.Join(p.Dir, "root"), RunRoot: filepath.Join(p.Dir, "run"), Driver: "vfs"})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return d
}

// TestFetchCommitsNothing: until the pod has the layers there is no record.
func TestFetchCommitsNothing(t *testing.T) {
	g := NewWithT(t)
	d := opened(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{})
	img, stats, err := d.Fetch(t.Context(), manifestonly.Request{Name: pushed.Reference})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(img.ConfigDigest.String()).To(Equal(pushed.ConfigDigest.String()))
	g.Expect(img.Pulled.Reference.String()).To(Equal(pushed.Reference))
	g.Expect(stats.Requests).To(BeNumerically(">", 0))
	g.Expect(d.store.List(t.Context())).To(BeEmpty())

	record, err := d.Commit(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(d.store.List(t.Context())).To(ConsistOf(record))
	g.Expect(record.ImageID()).To(Equal(img.ConfigDigest.ImageID()))
	// What the store has is not fetched again, and what is fetched is checked again.
	before := len(r.Requests())
	_, warm, err := d.Fetch(t.Context(), manifestonly.Request{Name: pushed.Reference})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(warm.Requests).To(BeNumerically("<", stats.Requests))
	g.Expect(len(r.Requests()) - before).To(Equal(warm.Requests))
	broken := img
	broken.Config = []byte("{}")
	_, err = d.Commit(t.Context(), broken)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DigestMismatch))

	_, _, err = d.Fetch(t.Context(), manifestonly.Request{Name: pushed.Reference + "-none"})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = d.Fetch(ended, manifestonly.Request{Name: pushed.Reference})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled))
	g.Expect(err).To(MatchError(ContainSubstring(pushed.Reference)))
	_, _, err = d.FetchAt(t.Context(), front.Place{Sandbox: []byte("{}")}, manifestonly.Request{Name: pushed.Reference})
	g.Expect(err).To(HaveOccurred(), "a pod without a network is asked from nowhere else")
}

// TestCommitIsOnePulls: a store that panics costs that pull and not husk, and nobody waits
// for one who has left.
func TestCommitIsOnePulls(t *testing.T) {
	g := NewWithT(t)
	d := opened(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{})
	img, _, err := d.Fetch(t.Context(), manifestonly.Request{Name: pushed.Reference})
	g.Expect(err).NotTo(HaveOccurred())
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = d.Commit(ended, img)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled))
	g.Expect(err).To(MatchError(ContainSubstring(pushed.Reference)))
	d.store = nil
	_, err = d.Commit(t.Context(), img)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal), "%v", err)
}

// TestFetchesDoNotMix: each is of one pod, whose layers follow; a library that panics
// costs that one.
func TestFetchesDoNotMix(t *testing.T) {
	g := NewWithT(t)
	d := opened(t)
	req := manifestonly.Request{Name: "registry.test/app:v1"}
	var both, ends sync.WaitGroup
	both.Add(2)
	for range 2 {
		ends.Go(func() {
			_, err := d.alone(t.Context(), req, func(context.Context) (manifestonly.Result, error) {
				both.Done()
				both.Wait() // both are under way
				return manifestonly.Result{}, nil
			})
			g.Expect(err).NotTo(HaveOccurred())
		})
	}
	ends.Wait()
	_, err := d.alone(t.Context(), req, func(context.Context) (manifestonly.Result, error) { panic("a parser") })
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal))
}

// TestHandlers: what crio.conf says becomes what the front is told.
func TestHandlers(t *testing.T) {
	d := opened(t)
	g := NewWithT(t)
	h, ok := d.now.Load().Handler("husk")
	g.Expect(ok).To(BeTrue())
	g.Expect([]bool{h.GuestPull, h.PullsLayers, h.ResolvesNames}).To(Equal([]bool{true, true, true}))
	g.Expect(d.now.Load().frontConfig().LayerPullTimeout).To(Equal(d.now.Load().Config.LayerPullTimeout.Duration))
	g.Expect(d.now.Load().frontConfig().LayerPullTimeout).To(BeNumerically(">", 0))
}
