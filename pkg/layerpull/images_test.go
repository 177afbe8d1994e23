package layerpull

import (
	"context"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func TestImagesAndRemove(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	base := images.Layer{Random: 1000}
	cfg := reg.config(t)
	pull := func(layers ...images.Layer) (imageref.Reference, Image, images.Summary) {
		ref, summary := reg.push(t, images.Spec{Layers: layers})
		img, err := Pull(t.Context(), ref, store, cfg)
		g.Expect(err).NotTo(HaveOccurred())
		return ref, img, summary
	}
	g.Expect(store.Images()).To(BeEmpty())
	began := time.Now()
	first, firstImage, summary := pull(base, images.Layer{Random: 300})
	second, secondImage, _ := pull(base, images.Layer{Random: 20})

	list, err := store.Images()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(list).To(HaveLen(2))
	g.Expect([]string{list[0].Reference.String(), list[1].Reference.String()}).To(Equal([]string{second.String(), first.String()}), "the newest first")
	g.Expect(list[1].Manifest.Digest()).To(Equal(summary.Instances[0].Manifest))
	g.Expect(list[1].ConfigDigest.Digest()).To(Equal(summary.Instances[0].Config))
	g.Expect(list[1].Layers).To(Equal(2))
	g.Expect([]int64{list[0].Bytes, list[1].Bytes}).To(Equal([]int64{1020, 1300}))
	g.Expect(list[1].PulledAt).To(And(BeTemporally(">", began), BeTemporally("<", time.Now())))
	g.Expect(list[1].Took).To(And(BeNumerically(">", 0), BeNumerically("<", time.Since(began))))

	// Only what is its own.
	freed, err := store.Remove(t.Context(), first)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(freed).To(BeEquivalentTo(300))
	g.Expect(firstImage.LayerDirs[1]).NotTo(BeADirectory())
	g.Expect(secondImage.LayerDirs[0]).To(BeADirectory())
	g.Expect(list[:1]).To(Equal(must(store.Images())))
	_, err = store.Remove(t.Context(), first)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring(first.String())))

	// It can be pulled again, and then nothing of both stays.
	reg.reset()
	again, err := Pull(t.Context(), first, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(again.FetchedLayers).To(Equal(1))
	for _, ref := range []imageref.Reference{first, second} {
		_, err = store.Remove(t.Context(), ref)
		g.Expect(err).NotTo(HaveOccurred())
	}
	expectEmpty(t, store)
	g.Expect(list0(t, store)).To(BeEmpty())
	g.Expect(store.used()).To(BeZero())
}

// list0 lists what a removal could forget.
func list0(t *testing.T, store *Store) []string {
	t.Helper()
	return append(list(t, store.path("sizes", "")), list(t, store.path("roots", ""))...)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestRepositoriesWithOneDigest: each has its own record, because each has its own policy.
func TestRepositoriesWithOneDigest(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	spec := images.Spec{Layers: []images.Layer{oneFile("/a")}}
	ref, _ := reg.push(t, spec)
	dir := t.TempDir()
	_, err := images.Build(t.Context(), dir, "t", spec)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(images.Push(t.Context(), dir, "t", reg.host+"/test/other:t")).To(Succeed())
	other, err := imageref.ParseReference(strings.Replace(ref.String(), "/test/app", "/test/other", 1))
	g.Expect(err).NotTo(HaveOccurred())
	cfg := reg.config(t)
	for _, r := range []imageref.Reference{ref, other} {
		reg.reset()
		_, err := Pull(t.Context(), r, store, cfg)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(reg.count("/manifests/")).NotTo(BeZero(), "asked for itself")
	}
	reg.reset()
	for _, r := range []imageref.Reference{ref, other} {
		_, err := Pull(t.Context(), r, store, cfg)
		g.Expect(err).NotTo(HaveOccurred())
	}
	g.Expect(reg.count("")).To(BeZero(), "both are known")
	g.Expect(store.Images()).To(HaveLen(2))
	freed, err := store.Remove(t.Context(), ref)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(freed).To(BeZero())
	g.Expect(store.Images()).To(HaveLen(1))
}

// TestRemoveWaitsForPulls: a pull counts on the layers that it found.
func TestRemoveWaitsForPulls(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	base, cfg := oneFile("/base"), reg.config(t)
	first, _ := reg.push(t, images.Spec{Layers: []images.Layer{base}})
	_, err := Pull(t.Context(), first, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())

	second, summary := reg.push(t, images.Spec{Layers: []images.Layer{base, oneFile("/slow")}})
	asked, answer := make(chan struct{}), make(chan struct{})
	reg.flaky(t, summary.Instances[0].Layers[1], func(w http.ResponseWriter, _ *http.Request, content []byte) {
		close(asked)
		<-answer
		_, _ = w.Write(content)
	})
	var wg sync.WaitGroup
	var img Image
	var pullErr error
	wg.Go(func() { img, pullErr = Pull(t.Context(), second, store, cfg) })
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), 5*lockPoll)
	defer cancel()
	_, err = store.Remove(ctx, first)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	g.Expect(store.Images()).To(HaveLen(1))

	// And a removal keeps pulls out.
	close(answer)
	wg.Wait()
	g.Expect(pullErr).NotTo(HaveOccurred())
	g.Expect(read(t, img.LayerDirs[0], "base")).To(Equal(marker))
	unlock, err := store.wait(t.Context(), storeLock, unix.LOCK_EX)
	g.Expect(err).NotTo(HaveOccurred())
	ctx, cancel = context.WithTimeout(t.Context(), 5*lockPoll)
	defer cancel()
	_, err = Pull(ctx, second, store, cfg)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	unlock()
	_, err = store.Remove(t.Context(), first)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, img.LayerDirs[0], "base")).To(Equal(marker), "the other image has it")
}

func TestRemoveTakesLeftOversAndNothingElse(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	cfg := reg.config(t)
	good, _ := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/good")}})
	_, err := Pull(t.Context(), good, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	bad, summary := reg.push(t, images.Spec{Layers: []images.Layer{{Random: 500}, oneFile("/missing")}})
	kept := store.path("layers", summary.Instances[0].Layers[0].DiffID.Encoded())
	reg.flaky(t, summary.Instances[0].Layers[1], func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		g.Eventually(kept, "20s").Should(BeADirectory())
		w.WriteHeader(http.StatusNotFound)
	})
	_, err = Pull(t.Context(), bad, store, cfg)
	g.Expect(err).To(HaveOccurred())
	g.Expect(kept).To(BeADirectory(), "for the next attempt")

	// A record that cannot be read may be of an image that runs.
	broken := store.path("images", strings.Repeat("0", 64)+".json")
	writeFile(t, broken, "{")
	_, err = store.Remove(t.Context(), good)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal), "%v", err)
	g.Expect(list(t, store.path("layers", ""))).To(HaveLen(2))
	_, err = store.Images()
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal), "%v", err)
	g.Expect(os.Remove(broken)).To(Succeed())

	_, err = Pull(t.Context(), good, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	freed, err := store.Remove(t.Context(), good)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(freed).To(BeEquivalentTo(500 + len(marker)))
	expectEmpty(t, store)

	_, err = store.Remove(t.Context(), imageref.Reference{})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
}
