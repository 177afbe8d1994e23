package sandboxes_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/internal/testkit/shims"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestList(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	client := sandboxes.Client{StateDir: dir}
	g.Expect(client.List(t.Context())).To(BeEmpty(), "no pod has ever run")
	older := image()
	older.PulledAt, older.ImageId, older.Bytes = 1, digestA, math.MaxUint64
	one := &shims.Shim{
		ID: "one",
		List: func(context.Context) (*shimv1.ListImagesResponse, error) {
			return &shimv1.ListImagesResponse{Images: []*shimv1.Image{older, image()}}, nil
		},
		Status: func(context.Context) (*shimv1.ImageStatusResponse, error) {
			return &shimv1.ImageStatusResponse{
				SandboxId: "one", PodName: "web\x1b[2J", PodNamespace: strings.Repeat("n", 1<<10), PodUid: "u",
				Store: &shimv1.Store{Kind: "memory", Size: 1000, Used: 10},
				Pulls: []*shimv1.Pull{{Reference: "b", StartedAt: 20}, {Reference: "a", StartedAt: 10, Progress: &shimv1.Progress{Layers: 3, LayersDone: 1}}},
			}, nil
		},
	}
	one.Start(t, dir)
	(&shims.Shim{ID: "two"}).Start(t, dir)
	shims.StartOld(t, dir, "zold")
	g.Expect(os.Mkdir(filepath.Join(dir, "pods", "half-made"), 0o700)).To(Succeed())
	g.Expect(os.Mkdir(filepath.Join(dir, "pods", ".hidden"), 0o700)).To(Succeed())

	got, err := client.List(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got).To(HaveLen(3))
	g.Expect(got[0].Err).NotTo(HaveOccurred())
	g.Expect([]string{got[0].ID, got[0].Name, got[0].UID}).To(Equal([]string{"one", "web [2J", "u"}))
	g.Expect(len(got[0].Namespace)).To(BeNumerically("<", 300))
	g.Expect(got[0].Store).To(Equal(sandboxes.Store{Kind: "memory", Limit: 1000, Used: 10}))
	g.Expect(got[0].Pulls[0]).To(Equal(sandboxes.Pull{
		Reference: "a", StartedAt: time.Unix(0, 10).UTC(), Progress: sandboxes.Progress{Layers: 3, LayersDone: 1},
	}), "the oldest first")
	g.Expect(got[0].Images).To(HaveLen(2))
	g.Expect(got[0].Images[0].ID.String()).To(Equal(imageID), "the last pulled first")
	g.Expect(got[0].Images[0].Containers).To(Equal([]string{"c1"}))
	g.Expect(got[0].Images[1].Bytes).To(Equal(int64(1)<<50), "no more than a sum can take")
	g.Expect(got[1]).To(Equal(sandboxes.Sandbox{ID: "two", Name: "pod-two", Namespace: "default", UID: "uid-two", Images: []sandboxes.Image{}}))
	g.Expect(got[2].ID).To(Equal("zold"))
	g.Expect(errors.Is(got[2].Err, sandboxes.ErrOldShim)).To(BeTrue())

	pulling, err := client.Pulling(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(pulling[0].Images).To(BeNil())
	g.Expect(pulling[0].Pulls).To(HaveLen(2))
}

// TestListBeside: pods that hang, lie or die cost their own line, and a bounded time.
func TestListBeside(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	(&shims.Shim{ID: "good"}).Start(t, dir)
	for i := range 2 * sandboxes.AtOnce {
		raw(t, dir, fmt.Sprintf("hung-%02d", i), func(net.Conn) {})
	}
	(&shims.Shim{ID: "many", List: func(context.Context) (*shimv1.ListImagesResponse, error) {
		return &shimv1.ListImagesResponse{Images: make([]*shimv1.Image, sandboxes.MaxImages+1)}, nil
	}}).Start(t, dir)
	(&shims.Shim{ID: "liar", Status: func(context.Context) (*shimv1.ImageStatusResponse, error) {
		return &shimv1.ImageStatusResponse{SandboxId: "good"}, nil
	}}).Start(t, dir)
	(&shims.Shim{ID: "pulls", Status: func(context.Context) (*shimv1.ImageStatusResponse, error) {
		return &shimv1.ImageStatusResponse{SandboxId: "pulls", Pulls: make([]*shimv1.Pull, 1000)}, nil
	}}).Start(t, dir)
	g.Expect(shims.Listen(t, dir, "dead").Close()).To(Succeed()) // unlinks; so the pod has left
	raw(t, dir, "large", func(c net.Conn) { _, _ = c.Write(frame(1, 2, make([]byte, sandboxes.MaxAnswer+1))) })
	raw(t, dir, "noise", func(c net.Conn) { _, _ = c.Write(make([]byte, 100)) })
	raw(t, dir, "other", func(c net.Conn) { _, _ = c.Write(frame(3, 2, nil)) })
	raw(t, dir, "request", func(c net.Conn) { _, _ = c.Write(frame(1, 1, nil)) })
	raw(t, dir, "garbage", func(c net.Conn) { _, _ = c.Write(frame(1, 2, []byte("\xff\xff\xff\xff"))) })
	raw(t, dir, "short", func(c net.Conn) { _, _ = c.Write(frame(1, 2, make([]byte, 100))[:20]); _ = c.Close() })
	raw(t, dir, "twice", func(c net.Conn) { _, _ = c.Write(append(frame(1, 2, nil), frame(1, 2, nil)...)) })

	const patience = 500 * time.Millisecond
	start := time.Now()
	got, err := sandboxes.Impatient(dir, time.Minute, 0, patience).List(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(time.Since(start)).To(BeNumerically("<", 8*patience))
	seen := map[string]error{}
	for _, s := range got {
		seen[s.ID] = s.Err
		if s.Err != nil {
			g.Expect(errdefs.KindOf(s.Err)).To(Equal(errdefs.Unavailable), "%s: %v", s.ID, s.Err)
			g.Expect(s.Images).To(BeEmpty())
		}
	}
	g.Expect(seen).NotTo(HaveKey("dead"))
	g.Expect(seen).To(HaveKeyWithValue("good", BeNil()))
	delete(seen, "good")
	g.Expect(seen).To(HaveLen(2*sandboxes.AtOnce + 10))
	g.Expect(seen).To(HaveEach(HaveOccurred()))

	// A scrape that is over waits for none of them.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start = time.Now()
	got, err = sandboxes.Client{StateDir: dir}.List(ctx)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got).To(HaveEach(HaveField("Err", HaveOccurred())))
	g.Expect(time.Since(start)).To(BeNumerically("<", time.Second))
}

// TestManyAreNotAskedAtOnce: a node full of pods is looked at a few at a time.
func TestManyAreNotAskedAtOnce(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	var now, most atomic.Int32
	for i := range 3 * sandboxes.AtOnce {
		id := fmt.Sprint("pod-", i)
		(&shims.Shim{ID: id, Status: func(context.Context) (*shimv1.ImageStatusResponse, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			time.Sleep(5 * time.Millisecond)
			return &shimv1.ImageStatusResponse{SandboxId: id}, nil
		}}).Start(t, dir)
	}
	got, err := sandboxes.Client{StateDir: dir}.List(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got).To(HaveLen(3 * sandboxes.AtOnce))
	g.Expect(got).To(HaveEach(HaveField("Err", BeNil())))
	g.Expect(most.Load()).To(BeNumerically("<=", sandboxes.AtOnce))
}

// TestWhoseSocket: credentials go to no socket that another user could have made.
func TestWhoseSocket(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make what is another user's")
	}
	for name, spoil := range map[string]func(dir, pod, socket string) error{
		"the directory is another's":   func(_, pod, _ string) error { return os.Chown(pod, 65534, 0) },
		"others may write to it":       func(_, pod, _ string) error { return os.Chmod(pod, 0o777) },
		"the group may write above it": func(dir, _, _ string) error { return os.Chmod(filepath.Join(dir, "pods"), 0o770) },
		"all of it is another's":       func(dir, _, _ string) error { return os.Chown(dir, 65534, 0) },
		"the socket is another's":      func(_, _, socket string) error { return os.Lchown(socket, 65534, 0) },
		"a link leads to it": func(_, _, socket string) error {
			return errors.Join(os.Rename(socket, socket+".real"), os.Symlink(socket+".real", socket))
		},
		"a link leads to the pod": func(_, pod, _ string) error {
			return errors.Join(os.Rename(pod, pod+".real"), os.Symlink(pod+".real", pod))
		},
		"it is a file": func(_, _, socket string) error {
			return errors.Join(os.Remove(socket), os.WriteFile(socket, nil, 0o600))
		},
	} {
		g := NewWithT(t)
		dir := stateDir(t)
		shim := &shims.Shim{ID: podID}
		shim.Start(t, dir)
		client := sandboxes.Client{StateDir: dir}
		_, err := client.Remove(t.Context(), podID, app)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "it answers")
		pod := filepath.Join(dir, "pods", podID)
		g.Expect(spoil(dir, pod, filepath.Join(pod, "shim.sock"))).To(Succeed(), name)
		_, err = client.Pull(t.Context(), request(g, nil))
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%s: %v", name, err)
		_, err = client.Remove(t.Context(), podID, app)
		g.Expect(err).To(HaveOccurred(), name)
		g.Expect(err).NotTo(MatchError(ContainSubstring("no such image")), name)
		g.Expect(shim.Pulls()).To(BeEmpty(), name)
	}
}

func TestRemoveAndFind(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	client := sandboxes.Client{StateDir: dir}
	shim := &shims.Shim{ID: "abc123", Remove: func(_ context.Context, image string) (uint64, error) {
		if image == app {
			return 42, nil
		}
		return 0, shims.Error(errdefs.Newf(errdefs.InUse, "remove "+image, "container c1 is on it"))
	}}
	shim.Start(t, dir)
	(&shims.Shim{ID: "abd"}).Start(t, dir)
	(&shims.Shim{ID: "abdd"}).Start(t, dir)
	g.Expect(client.Remove(t.Context(), "abc123", app)).To(Equal(int64(42)))
	_, err := client.Remove(t.Context(), "abc123", "other")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse))
	g.Expect(err).To(MatchError(ContainSubstring("c1")))
	_, err = client.Remove(t.Context(), "none", app)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))

	g.Expect(client.Find("abc")).To(Equal("abc123"))
	g.Expect(client.Find("abd")).To(Equal("abd"), "the whole of one, the beginning of another")
	for prefix, kind := range map[string]errdefs.Kind{"ab": errdefs.InvalidArgument, "x": errdefs.NotFound, "": errdefs.NotFound} {
		_, err := client.Find(prefix)
		g.Expect(errdefs.KindOf(err)).To(Equal(kind), prefix)
	}
}
