package layerpull

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	dockerUncompressed = "application/vnd.docker.image.rootfs.diff.tar"
	schema1            = "application/vnd.docker.distribution.manifest.v1+json"
)

// imageComparisons: formats of images.
func imageComparisons() []comparison {
	edited := func(edit func(w *site, image *fakeregistry.Image)) func(*site) string {
		return func(w *site) string {
			image := compareImage(w.t, "label")
			edit(w, &image)
			return w.pushImage(w.open("main", fakeregistry.Options{}), "app", image).Repository
		}
	}
	manifest := func(edit func(m *imgspec.Manifest)) func(*site) string {
		return edited(func(_ *site, image *fakeregistry.Image) {
			types := image.Edit
			image.Edit = func(m *imgspec.Manifest) { types(m); edit(m) }
		})
	}
	index := func(entries func(w *site, r *fakeregistry.Registry, p fakeregistry.Pushed) []imgspec.Descriptor) func(*site) string {
		return func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			p := w.push(r, "app")
			w.pushed = r.PushIndex(w.t, "app", "index", entries(w, r, p)...)
			return p.Repository
		}
	}
	arch := runtime.GOARCH
	return []comparison{
		{name: "OCI", want: ok, from: "main", arrange: edited(func(*site, *fakeregistry.Image) {})},
		{name: "docker schema 2", want: ok, from: "main", arrange: edited(func(_ *site, image *fakeregistry.Image) {
			image.Docker, image.Edit = true, layerTypes(dockerUncompressed)
		})},
		{name: "no layers", want: ok, from: "main", arrange: edited(func(_ *site, image *fakeregistry.Image) { image.Layers = nil })},
		{name: "index", want: ok, from: "main", arrange: index(func(_ *site, _ *fakeregistry.Registry, p fakeregistry.Pushed) []imgspec.Descriptor {
			return []imgspec.Descriptor{p.Entry("linux", "s390x", ""), p.Entry("linux", arch, "")}
		})},
		{name: "docker's list", want: ok, from: "main", arrange: dockerList},
		{name: "index without this platform", want: errdefs.NoPlatform.String(), arrange: index(func(_ *site, _ *fakeregistry.Registry, p fakeregistry.Pushed) []imgspec.Descriptor {
			return []imgspec.Descriptor{p.Entry("linux", "s390x", ""), p.Entry("windows", arch, "")}
		})},
		{name: "empty index", want: errdefs.NoPlatform.String(), arrange: index(func(*site, *fakeregistry.Registry, fakeregistry.Pushed) []imgspec.Descriptor {
			return []imgspec.Descriptor{}
		})},
		{name: "instance is missing", want: errdefs.NotFound.String(), arrange: index(func(_ *site, r *fakeregistry.Registry, p fakeregistry.Pushed) []imgspec.Descriptor {
			r.On(fakeregistry.Manifest(p.Digest.String()), fakeregistry.Status(404, ""))
			return []imgspec.Descriptor{p.Entry("linux", arch, "")}
		})},
		{name: "nested index", want: errdefs.Internal.String(), arrange: index(func(w *site, r *fakeregistry.Registry, p fakeregistry.Pushed) []imgspec.Descriptor {
			inner := r.PushIndex(w.t, "app", "inner", p.Entry("linux", arch, ""))
			return []imgspec.Descriptor{inner.Entry("linux", arch, "")}
		})},
		{name: "artifact", want: ok, arrange: manifest(func(m *imgspec.Manifest) {
			m.ArtifactType, m.Config.MediaType = "application/vnd.husk.test", "application/vnd.husk.test+json"
		})},
		{name: "wrong diff ID", want: ok, arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			one, other := oneLayer(w.t, "label"), oneLayer(w.t, "other").Layers[0]
			one.Edit = func(m *imgspec.Manifest) {
				m.Layers[0] = imgspec.Descriptor{MediaType: imgspec.MediaTypeImageLayer, Digest: r.PushBlob(w.t, "app", other), Size: int64(len(other))}
			}
			return w.pushImage(r, "app", one).Repository
		}},
		{name: "wrong size", want: ok, arrange: edited(func(w *site, image *fakeregistry.Image) {
			*image = oneLayer(w.t, "label")
			image.Edit = func(m *imgspec.Manifest) {
				layerTypes(imgspec.MediaTypeImageLayer)(m)
				m.Layers[0].Size += 512
			}
		})},
		{name: "foreign layer", want: ok, arrange: edited(func(w *site, image *fakeregistry.Image) {
			*image = oneLayer(w.t, "label")
			image.Docker = true
			cdn := w.registry("cdn", fakeregistry.Options{Listen: "127.0.0.2:0"})
			layer := image.Layers[0]
			cdn.On(fakeregistry.Any, fakeregistry.Serve("application/octet-stream", layer))
			image.Edit = func(m *imgspec.Manifest) {
				layerTypes(dockerUncompressed)(m)
				m.Layers[0].MediaType, m.Layers[0].URLs = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", []string{cdn.URL() + "/layer"}
			}
		})},
		{name: "another OS", want: ok, arrange: edited(func(_ *site, image *fakeregistry.Image) { image.Config.OS = "plan9" })},
		{name: "missing", want: errdefs.NotFound.String(), arrange: func(w *site) string {
			return w.push(w.open("main", fakeregistry.Options{}), "app").Repository + "@" + digest.FromString("gone").String()
		}},
		{name: "missing repository", want: errdefs.NotFound.String(), arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			w.push(r, "app")
			return r.Host() + "/none"
		}},
		{name: "sha512", want: errdefs.DigestMismatch.String(), arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			p := w.push(r, "app")
			sum := digest.SHA512.FromBytes(p.Manifest)
			r.On(fakeregistry.Manifest(sum.String()), fakeregistry.Serve(p.MediaType, p.Manifest))
			return p.Repository + "@" + sum.String()
		}},
		{name: "schema 1", want: ok, arrange: oldManifest},
		{name: "no manifest", want: errdefs.NotAnImage.String(), arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			body := []byte(`{"hello":"world"}`)
			w.push(r, "app")
			d := digest.FromBytes(body)
			r.On(fakeregistry.Manifest(d.String()), fakeregistry.Serve("application/json", body))
			return r.Host() + "/app@" + d.String()
		}},
	}
}

// dockerList pushes docker's form of an index.
func dockerList(w *site) string {
	r := w.open("main", fakeregistry.Options{})
	image := compareImage(w.t, "label")
	image.Docker, image.Edit = true, layerTypes(dockerUncompressed)
	p := w.pushImage(r, "app", image)
	list := imgspec.Index{MediaType: fakeregistry.DockerList, Manifests: []imgspec.Descriptor{p.Entry("linux", runtime.GOARCH, "")}}
	list.SchemaVersion = 2
	body, err := json.Marshal(list)
	NewWithT(w.t).Expect(err).NotTo(HaveOccurred())
	return p.Repository + "@" + r.PushManifest(w.t, "app", "list", fakeregistry.DockerList, body).String()
}

// oldManifest serves an image of schema 1.
func oldManifest(w *site) string {
	r := w.open("main", fakeregistry.Options{})
	p := w.push(r, "app")
	history, err := json.Marshal(`{"id":"` + strings.Repeat("1", 64) + `","created":"2024-01-02T03:04:05Z","architecture":"amd64","os":"linux"}`)
	NewWithT(w.t).Expect(err).NotTo(HaveOccurred())
	body := []byte(fmt.Sprintf(`{"schemaVersion":1,"name":"app","tag":"v1","architecture":"amd64","fsLayers":[{"blobSum":%q}],"history":[{"v1Compatibility":%s}]}`,
		p.Layers[0], history))
	d := digest.FromBytes(body)
	r.On(fakeregistry.Manifest(d.String()), fakeregistry.Serve(schema1, body))
	return p.Repository + "@" + d.String()
}

// faultComparisons: registries that fail or lie.
func faultComparisons() []comparison {
	unavailable, mismatch := errdefs.RegistryUnavailable.String(), errdefs.DigestMismatch.String()
	fails := func(m func(p fakeregistry.Pushed) fakeregistry.Match, f fakeregistry.Fault) func(*site) string {
		return func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			p := w.pushImage(r, "app", oneLayer(w.t, "label"))
			r.On(m(p), f)
			return p.Repository
		}
	}
	any := func(fakeregistry.Pushed) fakeregistry.Match { return fakeregistry.Any }
	manifest := func(fakeregistry.Pushed) fakeregistry.Match { return fakeregistry.Manifest("") }
	config := func(p fakeregistry.Pushed) fakeregistry.Match {
		return fakeregistry.Blob(p.ConfigDigest.String())
	}
	layer := func(p fakeregistry.Pushed) fakeregistry.Match { return fakeregistry.Blob(p.Layers[0].String()) }
	return []comparison{
		{name: "ping 503", want: unavailable, arrange: fails(any, fakeregistry.Status(503, ""))},
		{name: "everything 401", want: errdefs.Unauthorized.String(), arrange: fails(manifest, fakeregistry.Status(401, ""))},
		{name: "manifest 403", want: errdefs.Unauthorized.String(), arrange: fails(manifest, fakeregistry.Status(403, "go away"))},
		{name: "manifest denied", want: errdefs.Unauthorized.String(), arrange: fails(manifest, fakeregistry.Status(403, `{"errors":[{"code":"DENIED"}]}`))},
		{name: "manifest 404", want: errdefs.NotFound.String(), arrange: fails(manifest, fakeregistry.Status(404, ""))},
		{name: "manifest 404 as Harbor says it", want: errdefs.NotFound.String(), arrange: fails(manifest, fakeregistry.Status(404, `{"errors":[{"code":"NOT_FOUND","message":"artifact not found"}]}`))},
		{name: "manifest 500", want: unavailable, arrange: fails(manifest, fakeregistry.Status(500, ""))},
		{name: "manifest 418", want: unavailable, arrange: fails(manifest, fakeregistry.Status(418, "teapot"))},
		{name: "manifest too large", want: errdefs.TooLarge.String(), arrange: fails(manifest, fakeregistry.Lengthen(maxManifestBytes))},
		{name: "wrong manifest", want: mismatch, arrange: fails(manifest, fakeregistry.Corrupt())},
		{name: "wrong config", want: mismatch, arrange: fails(config, fakeregistry.Corrupt())},
		{name: "wrong layer", want: mismatch, arrange: fails(layer, fakeregistry.Corrupt())},
		{name: "layer 404", want: errdefs.NotFound.String(), arrange: fails(layer, fakeregistry.Status(404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`))},
		{name: "layer 502", want: unavailable, arrange: fails(layer, fakeregistry.Status(502, ""))},
		{name: "down", want: unavailable, arrange: func(w *site) string {
			r := w.open("main", fakeregistry.Options{})
			p := w.push(r, "app")
			r.Stop()
			return p.Repository
		}},
	}
}
