package shim

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// In TestImagesOfAPod the puller is the layer engine itself, without the child.

// engine pulls from a registry that wants credentials.
type engine struct {
	registry *fakeregistry.Registry
	conf     string
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	needRoot(t)
	r := fakeregistry.New(t, fakeregistry.Options{Username: "alice", Password: "s3cret-of-alice"})
	conf := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(conf, []byte("[[registry]]\nlocation = \""+r.Host()+"\"\ninsecure = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &engine{r, conf}
}

func (e *engine) Run(ctx context.Context, req layers.Request) (layers.Image, error) {
	req.Pull.RegistriesConf = e.conf
	return layers.Layers{}.Pull(ctx, req.Pull, req.Progress)
}

// push pushes an image with one layer for each content and returns its pinned reference.
func (e *engine) push(t *testing.T, repository string, contents ...string) string {
	t.Helper()
	image := fakeregistry.Image{Edit: func(m *imgspec.Manifest) {
		for i := range m.Layers {
			m.Layers[i].MediaType = imgspec.MediaTypeImageLayer
		}
	}}
	for _, content := range contents {
		var layer bytes.Buffer
		tw := tar.NewWriter(&layer)
		err := tw.WriteHeader(&tar.Header{Name: "f-" + content[:1], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
		if err == nil {
			_, err = io.WriteString(tw, content)
		}
		if err = errors.Join(err, tw.Close()); err != nil {
			t.Fatal(err)
		}
		image.Layers = append(image.Layers, layer.Bytes())
	}
	pushed := e.registry.Push(t, repository, "t", image)
	return pushed.Repository + "@" + pushed.Digest.String()
}

func TestImagesOfAPod(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	base, big := "base", strings.Repeat("x", 5000)
	one, two := e.push(t, "team/one", base, big), e.push(t, "team/two", base)
	r := newImagesRig(t, e)
	cfg, err := LoadConfig(r.config)
	r.Expect(err).NotTo(HaveOccurred())
	pull := func(ref, password string) error {
		_, err := r.pullImage(r.client, &shimv1.PullImageRequest{
			Reference: ref, Credentials: &shimv1.Credentials{Username: "alice", Password: password},
		})
		return err
	}
	err = pull(one, "wrong-one")
	r.Expect(kindOf(err)).To(Equal("unauthorized"), "%v", err)
	r.Expect(err).NotTo(MatchError(ContainSubstring("wrong-one")))
	r.Expect(r.list()).To(BeEmpty())
	r.Expect(pull(one, "s3cret-of-alice")).To(Succeed())
	r.Expect(pull(two, "s3cret-of-alice")).To(Succeed())
	r.Expect(r.list()).To(HaveExactElements(
		And(HaveField("Reference", two), HaveField("Layers", uint32(1)), HaveField("Containers", BeEmpty())),
		And(HaveField("Reference", one), HaveField("Layers", uint32(2)), HaveField("Bytes", BeNumerically(">=", 5000))),
	), "the last pulled first")

	// Nobody is asked again, and no credentials are needed for that, or left.
	asked := len(e.registry.Requests())
	r.Expect(pull(one, "wrong")).To(Succeed())
	r.Expect(r.pod.Put(pod.Record{ID: "c1"})).To(Succeed())
	r.service.mu.Lock()
	r.containers["c1"] = &container{created: make(chan struct{})}
	r.service.mu.Unlock()
	for _, ref := range []string{one, two} { // it runs from the first, and mounts the second
		_, err := r.service.pull(t.Context(), "c1", ref, testSpec(), cfg)
		r.Expect(err).NotTo(HaveOccurred())
	}
	r.Expect(len(e.registry.Requests())).To(Equal(asked), "no request at all")
	third := e.push(t, "team/three", base)
	_, err = r.service.pull(t.Context(), "c1", third, testSpec(), cfg)
	r.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "the credentials of PullImage were for PullImage: %v", err)

	record, err := r.pod.Get("c1")
	r.Expect(err).NotTo(HaveOccurred())
	r.Expect(record.Image).To(HaveField("Reference", one))
	r.Expect(record.Image.ImageID.String()).To(Equal(r.list()[1].ImageId))
	r.Expect(record.ImageMounts).To(HaveExactElements(HaveField("Reference", two)))
	r.Expect(r.list()[1].Containers).To(Equal([]string{"c1"}))

	// What a container is on, or has mounted, stays.
	for _, image := range r.list() {
		for _, name := range []string{image.Reference, image.ManifestDigest, image.ImageId} {
			_, err := r.removeImage(name)
			r.Expect(kindOf(err)).To(Equal("in-use"), "%v", err)
			r.Expect(err).To(MatchError(ContainSubstring("c1")))
		}
	}
	r.Expect(r.list()).To(HaveLen(2))
	r.Expect(r.forget("c1")).To(Succeed())
	freed, err := r.removeImage(strings.Split(one, "@")[1])
	r.Expect(err).NotTo(HaveOccurred())
	r.Expect(freed).To(BeNumerically(">=", 5000))
	r.Expect(freed).To(BeNumerically("<", 5000+4096), "the layer that the other image has stays")
	r.Expect(r.list()).To(HaveExactElements(HaveField("Reference", two)))
	_, err = r.removeImage(one)
	r.Expect(kindOf(err)).To(Equal("not-found"))
}
