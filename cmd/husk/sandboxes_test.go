package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/internal/testkit/shims"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	heldRef = "registry.test/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	heldID  = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// podsOf has a pod that holds an image and pulls another, and one that does not answer.
func podsOf(t *testing.T) (sandboxes.Client, *[]string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, as husk does")
	}
	dir, err := os.MkdirTemp("", "cl")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	removed := new([]string)
	(&shims.Shim{
		ID: strings.Repeat("c", 64),
		List: func(context.Context) (*shimv1.ListImagesResponse, error) {
			return &shimv1.ListImagesResponse{Images: []*shimv1.Image{{
				Reference: heldRef, ManifestDigest: strings.TrimPrefix(heldRef, "registry.test/app@"), ImageId: heldID, Layers: 2, Bytes: 3_500_000,
				PulledAt: time.Now().Add(-3 * time.Minute).UnixNano(), Took: int64(1500 * time.Millisecond),
			}}}, nil
		},
		Status: func(context.Context) (*shimv1.ImageStatusResponse, error) {
			return &shimv1.ImageStatusResponse{
				SandboxId: strings.Repeat("c", 64), PodName: "web", PodNamespace: "prod", Store: &shimv1.Store{Kind: "memory", Size: 1000, Used: 10},
				Pulls: []*shimv1.Pull{{
					Reference: "registry.test/model@sha256:0", StartedAt: time.Now().Add(-42 * time.Second).UnixNano(),
					Progress: &shimv1.Progress{Layers: 4, LayersDone: 1, Bytes: 2_000_000_000, BytesDone: 500_000_000},
				}, {Reference: "registry.test/just-begun@sha256:0"}},
			}, nil
		},
		Remove: func(_ context.Context, image string) (uint64, error) {
			*removed = append(*removed, image)
			if image == heldRef {
				return 0, shims.Error(errdefs.Newf(errdefs.InUse, "remove", "container c1 is on it"))
			}
			return 3_500_000, nil
		},
	}).Start(t, dir)
	shims.StartOld(t, dir, "older")
	return sandboxes.Client{StateDir: dir}, removed
}

// runPods runs a command on the pods.
func runPods(ctx context.Context, pods sandboxes.Client, w io.Writer, args ...string) (stderr string, err error) {
	var errs bytes.Buffer
	app := &cli.App{
		Name: "husk", Writer: w, ErrWriter: &errs, ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{imagesCommand(pods), pullsCommand(pods), rmCommand(pods)},
	}
	err = app.RunContext(ctx, append([]string{"husk"}, args...))
	return errs.String(), err
}

func TestSandboxImages(t *testing.T) {
	g := NewWithT(t)
	pods, _ := podsOf(t)
	var out bytes.Buffer
	said, err := runPods(t.Context(), pods, &out, "images", "--sandboxes")
	g.Expect(err).NotTo(HaveOccurred())
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	g.Expect(lines).To(HaveLen(2))
	g.Expect(strings.Fields(lines[1])).To(Equal([]string{"prod/web", "ccccccccccccc", heldRef, "bbbbbbbbbbbbb", "3.5", "MB", "3m"}))
	g.Expect(said).To(And(ContainSubstring("older"), HavePrefix("husk: ")))

	out.Reset()
	_, err = runPods(t.Context(), pods, &out, "images", "--sandboxes", "--format", "json")
	g.Expect(err).NotTo(HaveOccurred())
	var views []map[string]any
	g.Expect(json.Unmarshal(out.Bytes(), &views)).To(Succeed())
	g.Expect(views).To(HaveLen(1))
	g.Expect(views[0]).To(And(HaveKeyWithValue("sandbox", strings.Repeat("c", 64)), HaveKeyWithValue("pod", "web"), HaveKeyWithValue("namespace", "prod"),
		HaveKeyWithValue("image_id", heldID), HaveKeyWithValue("bytes", 3.5e6), HaveKeyWithValue("took_seconds", 1.5), HaveKeyWithValue("store_kind", "memory"),
		HaveKeyWithValue("store_limit", 1e3), HaveKeyWithValue("containers", BeEmpty()), HaveKey("pulled_at"), HaveKey("manifest_digest")))

	out.Reset()
	_, err = runPods(t.Context(), pods, &out, "images", "--sandboxes", "--format", "{{.Pod}} {{.ImageID}}")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out.String()).To(Equal("web " + heldID + "\n"))
}

func TestPulls(t *testing.T) {
	g := NewWithT(t)
	pods, _ := podsOf(t)
	var out bytes.Buffer
	said, err := runPods(t.Context(), pods, &out, "pulls")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(said).To(ContainSubstring("older"))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	g.Expect(lines).To(HaveLen(3))
	g.Expect(lines[2]).To(MatchRegexp(`^prod/web +c{13} +registry.test/model@sha256:0 +1/4 +500 MB/2 GB +25% +4[0-9]s`))
	g.Expect(lines[1]).To(MatchRegexp(`just-begun@sha256:0 +0/0 +0 B/0 B +- +-`))

	out.Reset()
	_, err = runPods(t.Context(), pods, &out, "pulls", "--format", "{{.Reference}} {{.BytesDone}}")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out.String()).To(HaveSuffix("registry.test/model@sha256:0 500000000\n"))
}

// lookedTwice ends the command when it has printed twice.
type lookedTwice struct {
	out   bytes.Buffer // not embedded: it has more ways to write
	end   context.CancelFunc
	looks int
}

func (l *lookedTwice) Write(p []byte) (int, error) {
	if l.looks++; l.looks == 2 {
		l.end()
	}
	return l.out.Write(p)
}

func TestWatchPulls(t *testing.T) {
	g := NewWithT(t)
	pods, _ := podsOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &lookedTwice{end: cancel}
	_, err := runPods(ctx, pods, out, "pulls", "-w", "--format", "{{.Pod}}")
	g.Expect(err).NotTo(HaveOccurred(), "to be interrupted is its only end")
	g.Expect(out.out.String()).To(Equal(strings.Repeat("web\nweb\n", 2)))
}

func TestRemoveFromASandbox(t *testing.T) {
	g := NewWithT(t)
	pods, removed := podsOf(t)
	var out bytes.Buffer
	_, err := runPods(t.Context(), pods, &out, "rm", "--sandbox", "ccc", "bbbbbb")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out.String()).To(Equal("bbbbbb: 3.5 MB are free again\n"))
	g.Expect(*removed).To(Equal([]string{heldID}), "by the whole ID")
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"in use":         {[]string{"--sandbox", "ccc", heldRef}, exitRefused},
		"no such image":  {[]string{"--sandbox", "ccc", "registry.test/none"}, exitNotFound},
		"no such pod":    {[]string{"--sandbox", "ddd", heldRef}, exitNotFound},
		"no pod":         {[]string{"--sandbox", "", heldRef}, exitNotFound},
		"an older shim":  {[]string{"--sandbox", "older", heldRef}, exitFailure},
		"nothing at all": {[]string{"--sandbox", "ccc"}, exitFailure},
	} {
		_, err := runPods(t.Context(), pods, &out, append([]string{"rm"}, c.args...)...)
		g.Expect(err).To(HaveOccurred(), name)
		g.Expect(exitCode(err)).To(Equal(c.code), "%s: %v", name, err)
	}
	g.Expect(*removed).To(Equal([]string{heldID, heldRef}))
}
