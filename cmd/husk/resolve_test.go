package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/urfave/cli/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// imageService is a husk.v1 server that knows one name.
type imageService struct {
	huskv1.UnimplementedImageServiceServer
	images []*huskv1.Image
	fails  error
}

func (s imageService) ResolveImage(_ context.Context, req *huskv1.ResolveImageRequest) (*huskv1.ResolveImageResponse, error) {
	if s.fails != nil {
		return nil, s.fails
	}
	if req.GetImage() != "app" || req.GetRuntimeHandler() == "runc" {
		return nil, status.Error(codes.NotFound, "this node has no image by that name")
	}
	return &huskv1.ResolveImageResponse{Images: s.images}, nil
}

// serveOn serves on the place's socket until the test ends.
func (p place) serveOn(t *testing.T, register func(*grpc.Server)) {
	t.Helper()
	server := grpc.NewServer()
	register(server)
	listener, err := net.Listen("unix", filepath.Join(p.dir, "front.sock"))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
}

func (p place) resolve(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := newApp()
	app.Commands = []*cli.Command{resolveCommand()}
	app.Writer = &out
	err := app.RunContext(t.Context(), append([]string{"husk", "--config", p.husk, "resolve"}, args...))
	return out.String(), err
}

func TestResolve(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	id := strings.Repeat("a", 64)
	p.serveOn(t, func(s *grpc.Server) {
		huskv1.RegisterImageServiceServer(s, imageService{images: []*huskv1.Image{
			{ImageId: id, References: []string{"r.io/app:1"}, Layers: 2, StoredBytes: 5_000_000, Source: huskv1.Source_SOURCE_CRIO},
			{
				ImageId: id, References: []string{"r.io/app@sha256:1", "r.io/app:1"}, ManifestDigest: "sha256:1", IndexDigests: []string{"sha256:0"},
				Platform: "linux/amd64", Layers: 2, EncryptedLayers: 1, LayerBytes: 7_000_000, StoredBytes: 4000, User: "web",
				RuntimeHandlers: []string{"husk", "kata"}, Source: huskv1.Source_SOURCE_RECORD, PulledAt: time.Unix(0, 0).Add(time.Hour).UnixNano(),
			},
		}})
	})
	out, err := p.resolve(t, "app")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal(`image ID:        ` + id + `
references:      r.io/app:1
layers:          2, on this host
on host:         5 MB
held by:         cri-o
handlers:        all that do not pull in the guest

image ID:        ` + id + `
references:      r.io/app@sha256:1
                 r.io/app:1
manifest:        sha256:1
indexes:         sha256:0
platform:        linux/amd64
layers:          2 (1 encrypted), 7 MB, not on this host
on host:         4 kB
user:            web
held by:         husk
handlers:        husk, kata
pulled:          1970-01-01T01:00:00Z
`))
	out, err = p.resolve(t, "--format", "json", "app")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(MatchJSON(`[
		{"image_id": "` + id + `", "references": ["r.io/app:1"], "manifest_digest": "", "index_digests": [], "platform": "", "layers": 2,
		 "encrypted_layers": 0, "layer_bytes": 0, "stored_bytes": 5000000, "user": "", "runtime_handlers": [], "held_by": "cri-o"},
		{"image_id": "` + id + `", "references": ["r.io/app@sha256:1", "r.io/app:1"], "manifest_digest": "sha256:1", "index_digests": ["sha256:0"],
		 "platform": "linux/amd64", "layers": 2, "encrypted_layers": 1, "layer_bytes": 7000000, "stored_bytes": 4000, "user": "web",
		 "runtime_handlers": ["husk", "kata"], "held_by": "husk", "pulled_at": "1970-01-01T01:00:00Z"}]`))
	out, err = p.resolve(t, "--format", "{{.HeldBy}} {{.EncryptedLayers}}", "app")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(Equal("cri-o 0\nhusk 1\n"))

	for _, args := range [][]string{{"other"}, {"--runtime-handler", "runc", "app"}} {
		_, err = p.resolve(t, args...)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
		g.Expect(exitCode(err)).To(Equal(exitNotFound))
	}
	_, err = p.resolve(t)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
}

// TestResolveLeavesTheTerminalAlone: the author of an image chooses its user.
func TestResolveLeavesTheTerminalAlone(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var out bytes.Buffer
	g.Expect(resolvedView{User: "a\x1b[2Jb\nheld by: me", Platform: "linux/\u009b31m"}.print(&out)).To(Succeed())
	g.Expect(out.String()).NotTo(ContainSubstring("\x1b"))
	g.Expect(out.String()).NotTo(ContainSubstring("\u009b"))
	g.Expect(out.String()).NotTo(MatchRegexp("(?m)^held by: me"))
	out.Reset()
	g.Expect(printTable(&out, []string{"A", "B"}, [][]string{{"x\ty\n", "\x1b[2J"}})).To(Succeed())
	g.Expect(out.String()).To(Equal("A     B\nx y    [2J\n"))
}

func TestResolveWithoutHusk(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	socket := filepath.Join(p.dir, "front.sock")
	_, err := p.resolve(t, "app")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable))
	g.Expect(err).To(MatchError(And(ContainSubstring("does a husk serve on"), ContainSubstring(socket))))
	g.Expect(exitCode(err)).To(Equal(exitUnavailable))
	// CRI-O itself listens there: it knows no such service.
	p.serveOn(t, func(*grpc.Server) {})
	_, err = p.resolve(t, "app")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unavailable))
	g.Expect(err).To(MatchError(ContainSubstring("no husk")))
}

func TestResolveErrorsKeepTheirKind(t *testing.T) {
	for code, kind := range map[codes.Code]errdefs.Kind{
		codes.InvalidArgument: errdefs.InvalidArgument, codes.Unavailable: errdefs.Unavailable, codes.NotFound: errdefs.NotFound,
		codes.DeadlineExceeded: errdefs.DeadlineExceeded, codes.Unknown: errdefs.Internal,
	} {
		p := newPlace(t)
		p.serveOn(t, func(s *grpc.Server) {
			huskv1.RegisterImageServiceServer(s, imageService{fails: status.Error(code, "the reason")})
		})
		_, err := p.resolve(t, "app")
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(kind), code.String())
		NewWithT(t).Expect(err).NotTo(MatchError(ContainSubstring("does a husk serve")), "one has answered")
	}
}
