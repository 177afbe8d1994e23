package layers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
	"github.com/husk-cri/husk/pkg/registryauth"
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

const (
	manifest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	imageID  = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	password = "s3cret/p"
)

// spy is a puller that returns its environment as that of the image.
type spy struct{}

func (spy) Pull(_ context.Context, req PullRequest, progress func(layerpull.Progress)) (Image, error) {
	image := Image{LayerDirs: []string{req.StoreDir + "/a", req.StoreDir + "/b"}, RootDir: req.StoreDir + "/b", Layers: 2, Bytes: 7}
	if err := errors.Join(image.ManifestDigest.UnmarshalText([]byte(manifest)), image.ImageID.UnmarshalText([]byte(imageID))); err != nil {
		return Image{}, err
	}
	switch req.Reference {
	case "refused":
		return Image{}, errdefs.Newf(errdefs.KeyUnavailable, "pull refused", "who says %q?", req.Credentials.Password)
	case "outside":
		image.LayerDirs[0] = "/etc"
	case "dots":
		image.LayerDirs[0] = req.StoreDir + "/../../etc"
	case "another root":
		image.RootDir = "/etc"
	case "nothing":
		image = Image{}
	case "less than nothing":
		image.Bytes = -1
	}
	progress(layerpull.Progress{Layers: -1})
	progress(layerpull.Progress{Layers: 2, LayersDone: 2, Bytes: 7, BytesDone: 7})
	env := os.Environ()
	slices.Sort(env)
	shown, err := os.ReadFile("/proc/self/environ")
	image.Config = imgspec.Image{Author: string(shown), Config: imgspec.ImageConfig{Env: env, User: req.Credentials.Password}}
	return image, err
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	var last layerpull.Progress
	image, err := Runner{Environ: []string{"HTTPS_PROXY=http://node:s3cret@host.example:1", "LD_PRELOAD=x"}}.Run(t.Context(), Request{
		Pull:     PullRequest{Reference: "r", StoreDir: "/s", TempDir: "/s/tmp", Credentials: registryauth.Open{Password: password}},
		Progress: func(p layerpull.Progress) { last = p },
	})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(image.LayerDirs).To(Equal([]string{"/s/a", "/s/b"}))
	g.Expect([]string{image.ManifestDigest.String(), image.ImageID.String(), image.RootDir}).To(Equal([]string{manifest, imageID, "/s/b"}))
	g.Expect(image.Config.Config.Env).To(ConsistOf(
		HavePrefix("PATH="), Equal("HOME=/nonexistent"), Equal("TMPDIR=/s/tmp"), Equal("HTTPS_PROXY=http://node:s3cret@host.example:1"),
	), "nothing of the host's environment but its proxies")
	g.Expect(image.Config.Author).NotTo(ContainSubstring("s3cret"), "what the kernel shows of the child's environment")
	g.Expect(image.Config.Config.User).To(Equal(password), "the child has the credentials")
	g.Expect(last).To(Equal(layerpull.Progress{Layers: 2, LayersDone: 2, Bytes: 7, BytesDone: 7}))
}

func TestErrorsRepeatNoCredential(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	_, err := Runner{}.Run(t.Context(), Request{Pull: PullRequest{Reference: "refused", Credentials: registryauth.Open{Password: password}}})
	g.Expect(errdefs.Is(err, errdefs.KeyUnavailable)).To(BeTrue(), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("who says")))
	for _, text := range []string{err.Error(), errdefs.ToGRPC(err).Error()} {
		g.Expect(text).NotTo(ContainSubstring(password))
	}
}

// A child that was taken over must not choose what a container gets as its root.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, ref := range []string{"outside", "dots", "another root", "nothing", "less than nothing"} {
		t.Run(ref, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			image, err := Runner{}.Run(t.Context(), Request{Pull: PullRequest{Reference: ref, StoreDir: "/s"}})
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal))
			g.Expect(err).To(MatchError(And(ContainSubstring("pull "+ref), ContainSubstring("the child"))))
			g.Expect(image).To(BeZero())
		})
	}
}

// The request goes through a pipe as JSON: nothing of it may get lost on the way.
func TestRequestTravels(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	want := PullRequest{
		Reference: "r@d", Credentials: registryauth.Open{Username: "u", Password: "p", Auth: "a", IdentityToken: "i", RegistryToken: "t"},
		Timeout: time.Minute, StoreBytes: 9, StoreDir: "/s", TempDir: "/t", AuthFile: "/a", KeysDir: "/k", KeyProviders: "/kp",
		PolicyPath: "/p", RegistriesConf: "/r", RegistriesConfDir: "/rd", RegistriesD: "/d", CertsDir: "/c", UntrustedNetwork: true,
		Rules: policy.Config{
			EncryptedSigned: policy.Mandatory, EncryptedUnsigned: policy.Refused, UnencryptedSigned: policy.Refused, UnencryptedUnsigned: policy.Refused,
		},
	}
	data, err := json.Marshal(want)
	g.Expect(err).NotTo(HaveOccurred())
	var got PullRequest
	g.Expect(json.Unmarshal(data, &got)).To(Succeed())
	g.Expect(got).To(Equal(want))
}

// What is pulled is said before anything is read.
func TestLayersRefuse(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := Layers{}.Pull(t.Context(), PullRequest{Reference: "NOT A NAME", StoreDir: t.TempDir()}, nil)
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
}
