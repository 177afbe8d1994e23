package layerpull

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// site is where a case takes place.
type site struct {
	t          *testing.T
	dir        string
	registries map[string]*fakeregistry.Registry
	entries    []string
	pushed     fakeregistry.Pushed
	// credentials are those of the request.
	credentials registryauth.Credentials
}

func newSite(t *testing.T) *site {
	t.Helper()
	w := &site{t: t, dir: t.TempDir(), registries: map[string]*fakeregistry.Registry{}}
	for _, dir := range []string{"registries.conf.d", "registries.d", "certs.d"} {
		NewWithT(t).Expect(os.Mkdir(w.path(dir), 0o700)).To(Succeed())
	}
	w.write("policy.json", acceptAnything)
	w.write("registries.conf", "")
	return w
}

func (w *site) path(name string) string { return filepath.Join(w.dir, name) }

func (w *site) write(name, content string) { writeFile(w.t, w.path(name), content) }

// registry starts a registry, of which nothing is configured.
func (w *site) registry(name string, opts fakeregistry.Options) *fakeregistry.Registry {
	r := fakeregistry.New(w.t, opts)
	w.registries[name] = r
	return r
}

// open is a registry that is configured to be reached by plain HTTP.
func (w *site) open(name string, opts fakeregistry.Options) *fakeregistry.Registry {
	r := w.registry(name, opts)
	w.conf("", r.Host(), "insecure = true")
	return r
}

// conf adds a [[registry]] to registries.conf; more are further lines, also mirrors.
func (w *site) conf(prefix, location string, more ...string) {
	lines := []string{"[[registry]]"}
	if prefix != "" {
		lines = append(lines, fmt.Sprintf("prefix = %q", prefix))
	}
	if location != "" {
		lines = append(lines, fmt.Sprintf("location = %q", location))
	}
	w.entries = append(w.entries, strings.Join(append(lines, more...), "\n")+"\n")
	w.write("registries.conf", strings.Join(w.entries, "\n"))
}

// mirror is a mirror of the [[registry]] before it.
func mirror(location string, more ...string) string {
	return strings.Join(append([]string{"[[registry.mirror]]", fmt.Sprintf("location = %q", location), "insecure = true"}, more...), "\n")
}

// auth writes the auth file: "user:password" by registry or path in it.
func (w *site) auth(logins map[string]string) {
	auths := map[string]any{}
	for scope, login := range logins {
		auths[scope] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(login))}
	}
	w.authJSON(map[string]any{"auths": auths})
}

func (w *site) authJSON(v any) {
	data, err := json.Marshal(v)
	NewWithT(w.t).Expect(err).NotTo(HaveOccurred())
	w.write("auth.json", string(data))
}

// policy writes policy.json: requirements by scope.
func (w *site) policy(scopes map[string][]signing.Requirement) {
	w.write("policy.json", string(signing.Policy(scopes)))
}

// compareImage is an image with two layers that can be unpacked by any user.
func compareImage(t *testing.T, label string) fakeregistry.Image {
	t.Helper()
	layer := func(name string) []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		g := NewWithT(t)
		g.Expect(tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(label)), Uid: os.Getuid(), Gid: os.Getgid()})).To(Succeed())
		_, err := tw.Write([]byte(label))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(tw.Close()).To(Succeed())
		return b.Bytes()
	}
	return fakeregistry.Image{
		Layers: [][]byte{layer("one"), layer("two")},
		Edit:   layerTypes(imgspec.MediaTypeImageLayer), // uncompressed: their digests are their diff IDs
	}
}

// oneLayer has one layer: of several, which are asked for depends on which fails first.
func oneLayer(t *testing.T, label string) fakeregistry.Image {
	t.Helper()
	image := compareImage(t, label)
	image.Layers = image.Layers[:1]
	return image
}

func layerTypes(mediaType string) func(*imgspec.Manifest) {
	return func(m *imgspec.Manifest) {
		for i := range m.Layers {
			m.Layers[i].MediaType = mediaType
		}
	}
}

// push pushes the image of the case, the same to each registry.
func (w *site) push(r *fakeregistry.Registry, repository string) fakeregistry.Pushed {
	return w.pushImage(r, repository, compareImage(w.t, "label"))
}

func (w *site) pushImage(r *fakeregistry.Registry, repository string, image fakeregistry.Image) fakeregistry.Pushed {
	w.pushed = r.Push(w.t, repository, "v1", image)
	return w.pushed
}
