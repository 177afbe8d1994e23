package sandboxes_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/internal/testkit/shims"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestPull(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	shim := &shims.Shim{ID: podID, Pull: func(_ context.Context, _ *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
		for _, p := range []*shimv1.Progress{{}, {Layers: 2, Bytes: 10}, {Layers: 2, LayersDone: 2, Bytes: 10, BytesDone: 10}} {
			if err := stream.Send(&shimv1.PullImageResponse{Progress: p}); err != nil {
				return err
			}
		}
		return done(stream)
	}}
	shim.Start(t, dir)
	var seen []sandboxes.Progress
	got, err := sandboxes.Client{StateDir: dir}.Pull(t.Context(), request(g, func(p sandboxes.Progress) { seen = append(seen, p) }))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.Manifest.String()).To(Equal("sha256:" + digestA))
	g.Expect(got.ID.String()).To(Equal(imageID))
	g.Expect([]any{got.Layers, got.Bytes, got.Took}).To(Equal([]any{2, int64(100), time.Second}))
	g.Expect(seen).To(Equal([]sandboxes.Progress{{}, {Layers: 2, Bytes: 10}, {Layers: 2, LayersDone: 2, Bytes: 10, BytesDone: 10}}))
	g.Expect(shim.Pulls()).To(HaveLen(1))
	asked := shim.Pulls()[0]
	g.Expect(asked.GetReference()).To(Equal(app))
	c := asked.GetCredentials()
	g.Expect([]string{c.GetUsername(), c.GetPassword(), c.GetAuth(), c.GetIdentityToken(), c.GetRegistryToken()}).
		To(Equal([]string{"u", secret, "dXNlcjpwYXNz", "identity", "bearer"}))
}

// TestPullErrors: the kind survives, whichever it is, and kubelet's words are said once.
func TestPullErrors(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	var fails error
	shim := &shims.Shim{ID: podID, Pull: func(context.Context, *shimv1.PullImageRequest, shimv1.Images_PullImageServer) error { return fails }}
	shim.Start(t, dir)
	client := sandboxes.Client{StateDir: dir}
	for _, kind := range errdefs.Kinds() {
		want := kind
		if kind == errdefs.Canceled { // not by the one who asked
			want = errdefs.Unavailable
		}
		fails = shims.Error(errdefs.Newf(kind, "pull "+app, "100%% the reason"))
		_, err := client.Pull(t.Context(), request(g, nil))
		g.Expect(errdefs.KindOf(err)).To(Equal(want), "%s: %v", kind, err)
		text := status.Convert(errdefs.ToGRPC(err)).Message()
		g.Expect(text).To(HaveSuffix("pull the layers of " + app + " in sandbox " + podID + ": 100% the reason"))
		for _, word := range []string{"RegistryUnavailable", "SignatureValidationFailed"} {
			g.Expect(strings.Count(text, word)).To(Equal(strings.Count(status.Convert(errdefs.ToGRPC(errdefs.New(want, "", nil))).Message(), word)), text)
			g.Expect(strings.Contains(text, word)).To(Equal(strings.HasPrefix(text, word)), text)
		}
	}
	for name, c := range map[string]struct {
		err  error
		kind errdefs.Kind
	}{
		"no detail, registry":    {status.Error(codes.Unknown, "RegistryUnavailable: pull: x"), errdefs.RegistryUnavailable},
		"no detail, signature":   {status.Error(codes.Unknown, "SignatureValidationFailed: pull: x"), errdefs.PolicyRefused},
		"no detail, unknown":     {status.Error(codes.Unknown, "x"), errdefs.Internal},
		"no detail, in use":      {status.Error(codes.FailedPrecondition, "x"), errdefs.InUse},
		"no detail, not found":   {status.Error(codes.NotFound, "x"), errdefs.NotFound},
		"no code of the table":   {status.Error(codes.Aborted, "x"), errdefs.Internal},
		"no status":              {errors.New("x"), errdefs.Internal},
		"the shim's successor":   {status.Error(codes.Unimplemented, "service husk.shim.v1.Images"), errdefs.Unavailable},
		"a kind of the future":   {shims.Error(status.Error(codes.NotFound, "x")), errdefs.Internal},
		"its own deadline":       {shims.Error(context.DeadlineExceeded), errdefs.DeadlineExceeded},
		"no result and no error": {nil, errdefs.Unavailable},
	} {
		fails = c.err
		_, err := client.Pull(t.Context(), request(g, nil))
		g.Expect(err).To(HaveOccurred(), name)
		g.Expect(errdefs.KindOf(err)).To(Equal(c.kind), "%s: %v", name, err)
		g.Expect(errors.Is(err, sandboxes.ErrOldShim)).To(BeFalse(), name)
	}
}

// TestPullRepeatsNoSecret: a registry may echo what it was sent, and a page of it.
func TestPullRepeatsNoSecret(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	says := fmt.Sprintf("you sent %s\x1b[31m\n%s", secret, strings.Repeat("é", 1<<16))
	shim := &shims.Shim{ID: podID, Pull: func(context.Context, *shimv1.PullImageRequest, shimv1.Images_PullImageServer) error {
		return shims.Error(errdefs.Newf(errdefs.Unauthorized, "pull", "%s", says))
	}}
	shim.Start(t, dir)
	_, err := sandboxes.Client{StateDir: dir}.Pull(t.Context(), request(g, nil))
	g.Expect(errdefs.Is(err, errdefs.Unauthorized)).To(BeTrue())
	g.Expect(err.Error()).To(And(ContainSubstring("you sent REDACTED"), Not(ContainSubstring(secret))))
	g.Expect(err.Error()).NotTo(MatchRegexp(`[\x00-\x1f]`))
	g.Expect(len(err.Error())).To(BeNumerically("<", sandboxes.MaxText+500))

	says = strings.Repeat(".", sandboxes.MaxText-len("pull: ")-len(secret)/2) + secret // half of it would be cut off
	_, err = sandboxes.Client{StateDir: dir}.Pull(t.Context(), request(g, nil))
	g.Expect(err.Error()).NotTo(ContainSubstring(secret[:3]))
}

// TestPullEndsWithItsClient: whoever leaves ends the pull in the pod.
func TestPullEndsWithItsClient(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	begun, ended := make(chan struct{}), make(chan struct{})
	shim := &shims.Shim{ID: podID, Pull: func(ctx context.Context, _ *shimv1.PullImageRequest, _ shimv1.Images_PullImageServer) error {
		close(begun)
		defer close(ended)
		return hang(ctx)
	}}
	shim.Start(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := sandboxes.Client{StateDir: dir}.Pull(ctx, request(g, nil))
		result <- err
	}()
	g.Eventually(begun, "10s").Should(BeClosed())
	cancel()
	g.Expect(errdefs.KindOf(<-result)).To(Equal(errdefs.Canceled))
	g.Eventually(ended, "10s").Should(BeClosed())
}

func TestPullDeadline(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	ended := make(chan struct{})
	shim := &shims.Shim{ID: podID, Pull: func(ctx context.Context, _ *shimv1.PullImageRequest, _ shimv1.Images_PullImageServer) error {
		defer close(ended)
		return hang(ctx)
	}}
	shim.Start(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := sandboxes.Client{StateDir: dir}.Pull(ctx, request(g, nil))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded))
	g.Eventually(ended, "10s").Should(BeClosed())
}

// TestPullOfAShimThatStops: it hangs, ends, or is killed in the middle.
func TestPullOfAShimThatStops(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]string{"hangs": "the shim gave no answer: it said nothing, and left 3 questions open", "ends": "the shim gave no answer"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			dir := stateDir(t)
			var hung atomic.Bool
			begun := make(chan struct{})
			shim := &shims.Shim{ID: podID}
			shim.Pull = func(ctx context.Context, _ *shimv1.PullImageRequest, _ shimv1.Images_PullImageServer) error {
				hung.Store(true)
				close(begun)
				return hang(ctx)
			}
			shim.Status = func(ctx context.Context) (*shimv1.ImageStatusResponse, error) {
				if hung.Load() {
					return nil, hang(ctx)
				}
				return &shimv1.ImageStatusResponse{SandboxId: podID}, nil
			}
			stop := shim.Start(t, dir)
			if name == "ends" {
				go func() { <-begun; stop() }()
			}
			client := sandboxes.Impatient(dir, 100*time.Millisecond, 10*time.Millisecond, 0)
			_, err := client.Pull(t.Context(), request(g, nil))
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
			g.Expect(err).To(MatchError(ContainSubstring(then)))
		})
	}
}

// TestPullThatSaysLittle is not taken for one that hangs.
func TestPullThatSaysLittle(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	var asked atomic.Int32
	enough := make(chan struct{})
	shim := &shims.Shim{ID: podID}
	shim.Status = func(context.Context) (*shimv1.ImageStatusResponse, error) {
		if asked.Add(1) == 10 {
			close(enough)
		}
		return &shimv1.ImageStatusResponse{SandboxId: podID}, nil
	}
	shim.Pull = func(_ context.Context, _ *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
		<-enough
		return done(stream)
	}
	shim.Start(t, dir)
	_, err := sandboxes.Impatient(dir, 10*time.Second, time.Millisecond, 0).Pull(t.Context(), request(g, nil))
	g.Expect(err).NotTo(HaveOccurred())
}

// TestPullOfAFlood: a shim that never stops talking is held up, and ends with its client.
func TestPullOfAFlood(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	var sent, heard atomic.Int64
	shim := &shims.Shim{ID: podID, Pull: func(ctx context.Context, _ *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
		for ctx.Err() == nil {
			if err := stream.Send(&shimv1.PullImageResponse{Progress: &shimv1.Progress{
				Layers: math.MaxUint32, LayersDone: math.MaxUint32, Bytes: 5, BytesDone: math.MaxUint64,
			}}); err != nil {
				return err
			}
			sent.Add(1)
		}
		return ctx.Err()
	}}
	shim.Start(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := sandboxes.Client{StateDir: dir}.Pull(ctx, request(g, func(p sandboxes.Progress) {
		heard.Add(1)
		g.Expect(p.BytesDone).To(Equal(int64(5)))
		g.Expect(p.Layers).To(And(Equal(p.LayersDone), BeNumerically("<=", 1<<16)))
	}))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded))
	g.Expect(heard.Load()).To(BeNumerically("<=", 51))
	g.Expect(heard.Load()).To(BeNumerically(">", 2))
}

// TestLyingResults: what a shim says it pulled must at least be an image.
func TestLyingResults(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*shimv1.Image){
		"no digest":           func(i *shimv1.Image) { i.ManifestDigest = "" },
		"another algorithm":   func(i *shimv1.Image) { i.ManifestDigest = "md5:00" },
		"a secret":            func(i *shimv1.Image) { i.ManifestDigest = secret },
		"no ID":               func(i *shimv1.Image) { i.ImageId = "latest" },
		"too many containers": func(i *shimv1.Image) { i.Containers = make([]string, 1<<11) },
		"a container's path":  func(i *shimv1.Image) { i.Containers = []string{"../../etc"} },
		"a container's novel": func(i *shimv1.Image) { i.Containers = []string{strings.Repeat("\x1b", 1<<16)} },
		"a digest's novel":    func(i *shimv1.Image) { i.ManifestDigest = strings.Repeat("\x1b", 1<<16) },
	} {
		g := NewWithT(t)
		dir := stateDir(t)
		shim := &shims.Shim{ID: podID, Pull: func(_ context.Context, _ *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
			i := image()
			change(i)
			return stream.Send(&shimv1.PullImageResponse{Result: i})
		}}
		shim.Start(t, dir)
		_, err := sandboxes.Client{StateDir: dir}.Pull(t.Context(), request(g, nil))
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%s: %v", name, err)
		g.Expect(err.Error()).NotTo(ContainSubstring(secret), name)
		g.Expect(len(err.Error())).To(BeNumerically("<", sandboxes.MaxText+500), name)
	}
}

// TestErrorAfterTheResult: the last word counts. One that never comes is not waited for.
func TestErrorAfterTheResult(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	late := true
	shim := &shims.Shim{ID: podID, Pull: func(ctx context.Context, _ *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
		if err := done(stream); err != nil {
			return err
		}
		if late {
			return shims.Error(errdefs.Newf(errdefs.TooLarge, "pull", "no room to keep it"))
		}
		return hang(ctx)
	}}
	shim.Start(t, dir)
	client := sandboxes.Client{StateDir: dir}
	_, err := client.Pull(t.Context(), request(g, nil))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge))
	late = false
	_, err = client.Pull(t.Context(), request(g, nil))
	g.Expect(err).NotTo(HaveOccurred())
}

func TestOldShim(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	shims.StartOld(t, dir, podID)
	client := sandboxes.Client{StateDir: dir}
	_, err := client.Pull(t.Context(), request(g, nil))
	g.Expect(errors.Is(err, sandboxes.ErrOldShim)).To(BeTrue(), "%v", err)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unsupported))
	_, err = client.Remove(t.Context(), podID, app)
	g.Expect(errors.Is(err, sandboxes.ErrOldShim)).To(BeTrue())
}

// TestPullOfNobody: the pod has left, or has another's ID.
func TestPullOfNobody(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := stateDir(t)
	client := sandboxes.Client{StateDir: dir}
	_, err := client.Pull(t.Context(), request(g, nil))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable), "%v", err)
	shim := &shims.Shim{ID: podID, Status: func(context.Context) (*shimv1.ImageStatusResponse, error) {
		return &shimv1.ImageStatusResponse{SandboxId: "sandbox-2"}, nil
	}}
	shim.Start(t, dir)
	_, err = client.Pull(t.Context(), request(g, nil))
	g.Expect(err).To(MatchError(ContainSubstring("sandbox-2")))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable))
	g.Expect(shim.Pulls()).To(BeEmpty(), "no credential went to it")
	for _, id := range []string{"", "..", "a/b", strings.Repeat("a", 65)} {
		req := request(g, nil)
		req.Sandbox = id
		_, err := client.Pull(t.Context(), req)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), fmt.Sprintf("%q", id))
	}
}
