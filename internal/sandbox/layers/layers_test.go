package layers

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestMain makes the test binary a child too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ChildCommand {
		if err := Child(context.Background(), os.Stdin, os.Stdout, spy{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// spy is a puller that returns its environment as that of the image.
type spy struct{}

func (spy) Pull(_ context.Context, req PullRequest) (Image, error) {
	if req.Reference == "refused" {
		return Image{}, errdefs.New(errdefs.KeyUnavailable, "pull refused", nil)
	}
	env := os.Environ()
	slices.Sort(env)
	return Image{
		ManifestDigest: "d", LayerDirs: []string{req.StoreDir + "/a", req.StoreDir + "/b"}, RootDir: "/r",
		Config: imgspec.Image{Config: imgspec.ImageConfig{Env: env}},
	}, nil
}

func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	t.Setenv("HTTPS_PROXY", "http://host.example:1")
	image, err := Runner{}.Run(t.Context(), Request{Pull: PullRequest{Reference: "r", StoreDir: "/s", TempDir: "/s/tmp"}})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(image.LayerDirs).To(Equal([]string{"/s/a", "/s/b"}))
	g.Expect([]string{image.ManifestDigest, image.RootDir}).To(Equal([]string{"d", "/r"}))
	g.Expect(image.Config.Config.Env).To(ConsistOf(HavePrefix("PATH="), Equal("HOME=/nonexistent"), Equal("TMPDIR=/s/tmp")),
		"nothing of the host's environment")

	_, err = Runner{}.Run(t.Context(), Request{Pull: PullRequest{Reference: "refused"}})
	g.Expect(errdefs.Is(err, errdefs.KeyUnavailable)).To(BeTrue(), "%v", err)
}

// What is pulled is said before anything is read.
func TestLayersRefuse(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := Layers{}.Pull(t.Context(), PullRequest{Reference: "NOT A NAME", StoreDir: t.TempDir()})
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
}
