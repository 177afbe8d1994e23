package layerpull

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestCannotFit: what is too large for the store is refused before a layer is asked
// for, and says by how much.
func TestCannotFit(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { NewWithT(t).Expect(unix.Unmount(full, 0)).To(Succeed()) })
	reg := newRegistry(t)
	base, big := images.Layer{Random: 2 << 20}, images.Layer{Random: 3 << 20}
	small, _ := reg.push(t, images.Spec{Layers: []images.Layer{base}})
	large, summary := reg.push(t, images.Spec{Layers: []images.Layer{base, big, big}})
	need := summary.Instances[0].Layers[1].Size + summary.Instances[0].Layers[2].Size
	for _, tc := range []struct {
		name, dir string
		limit     int64
		text      string
	}{
		{"the limit", t.TempDir(), 4 << 20, fmt.Sprintf("it needs at least %d bytes, the store has room for %d of %d", need, 2<<20, 4<<20)},
		{"the file system", full, 0, fmt.Sprintf("it needs at least %d bytes, the store has room for", need)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := NewWithT(t)
			store, err := OpenStore(tc.dir)
			g.Expect(err).NotTo(HaveOccurred())
			cfg := reg.config(t)
			cfg.Limits.StoreBytes = tc.limit
			_, err = Pull(t.Context(), small, store, cfg)
			g.Expect(err).NotTo(HaveOccurred())
			reg.reset()
			_, err = Pull(t.Context(), large, store, cfg)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(err).To(MatchError(HaveSuffix(fmt.Sprintf(" of %d", 4<<20))))
			for _, l := range summary.Instances[0].Layers {
				g.Expect(reg.count(l.Digest.String())).To(BeZero(), "no layer is asked for")
			}
			g.Expect(list(t, store.path("layers", ""))).To(HaveLen(1))
			g.Expect(store.Images()).To(HaveLen(1))
		})
	}
}

// TestRoomOfAnotherPull: a layer that another pull is unpacking is not counted twice, as
// what is missing and as what is taken.
func TestRoomOfAnotherPull(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { NewWithT(t).Expect(unix.Unmount(dir, 0)).To(Succeed()) })
	reg := newRegistry(t)
	ref, summary := reg.push(t, images.Spec{Layers: []images.Layer{{Random: 3 << 20}}})
	store, err := OpenStore(dir)
	g.Expect(err).NotTo(HaveOccurred())
	// Another process has most of it.
	diffID := summary.Instances[0].Layers[0].DiffID
	unlock, err := store.lock(t.Context(), diffID.Encoded())
	g.Expect(err).NotTo(HaveOccurred())
	tmp, err := store.begin(diffID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.WriteFile(filepath.Join(tmp, "f"), make([]byte, 2<<20), 0o600)).To(Succeed())
	cfg := reg.config(t)
	waits := sync.OnceFunc(func() { // it has found room, and gets what the other leaves
		_ = os.RemoveAll(tmp)
		unlock()
	})
	cfg.Progress = func(Progress) { waits() }
	_, err = Pull(t.Context(), ref, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
}

// TestRoomThatIsUsed: what the store holds counts also where only the content is too large.
func TestRoomThatIsUsed(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg, store := newRegistry(t), newStore(t)
	cfg := reg.config(t)
	cfg.Limits.StoreBytes = 4 << 20
	first, _ := reg.push(t, images.Spec{Layers: []images.Layer{zeroFile(2 << 20)}})
	second, _ := reg.push(t, images.Spec{Layers: []images.Layer{zeroFile(3 << 20)}})
	_, err := Pull(t.Context(), first, store, cfg)
	g.Expect(err).NotTo(HaveOccurred())
	_, err = Pull(t.Context(), second, store, cfg)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("the layer store may hold 4194304 bytes in all")))
	_, err = store.Remove(t.Context(), first)
	g.Expect(err).NotTo(HaveOccurred())
	_, err = Pull(t.Context(), second, store, cfg)
	g.Expect(err).NotTo(HaveOccurred(), "there is room again")
}

func TestRoom(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	store := newStore(t)
	r, err := store.room(100, 30)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r).To(Equal(room{left: 70, of: 100}))
	r, err = store.room(100, 130)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r).To(Equal(room{left: 0, of: 100}))

	g.Expect(room{left: 10, of: 20}.check([]layer{{size: 4}, {size: 6}})).To(Succeed())
	g.Expect(room{left: 10, of: 20}.check([]layer{{size: 4}, {size: 7}})).NotTo(Succeed())
	g.Expect(room{}.check(nil)).To(Succeed())
	// Sizes are the registry's claims.
	g.Expect(room{left: math.MaxInt64 - 1, of: math.MaxInt64}.check([]layer{{size: math.MaxInt64}, {size: math.MaxInt64}, {size: 2}})).NotTo(Succeed())
	g.Expect(blocks(math.MaxUint64, 4096)).To(BeEquivalentTo(math.MaxInt64))
	g.Expect(blocks(10, 4096)).To(BeEquivalentTo(40960))
}
