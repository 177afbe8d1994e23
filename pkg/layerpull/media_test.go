package layerpull

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestDockerMediaTypes pulls images whose manifest and layers are docker's.
func TestDockerMediaTypes(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	keys, public := newKeys(t)
	for _, tc := range []struct {
		compression images.Compression
		encrypt     *images.Encryption
		mediaType   string
	}{
		{images.Gzip, nil, "application/vnd.docker.image.rootfs.diff.tar.gzip"},
		{images.Zstd, nil, "application/vnd.docker.image.rootfs.diff.tar.zstd"},
		{images.None, nil, "application/vnd.docker.image.rootfs.diff.tar"},
		{images.Zstd, nil, "application/vnd.docker.image.rootfs.diff.tar.gzip"}, // misnamed, as happens
		{images.Gzip, &images.Encryption{PublicKeys: [][]byte{public}}, "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted"},
	} {
		t.Run(strings.TrimPrefix(tc.mediaType, "application/")+" "+string(tc.compression), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			reg := newRegistry(t)
			_, summary := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/secret")}, Compression: tc.compression, Encrypt: tc.encrypt})
			ref := reg.rewrite(t, summary, func(m *imgspec.Manifest, _ *imgspec.Image) {
				m.Layers[0].MediaType = tc.mediaType
				if tc.encrypt != nil || strings.HasSuffix(tc.mediaType, "zstd") {
					return // containers/image refuses them in docker's manifest
				}
				m.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
				m.Config.MediaType = "application/vnd.docker.container.image.v1+json"
			})
			cfg := reg.config(t)
			cfg.KeysDir = keys
			img, err := Pull(t.Context(), ref, newStore(t), cfg)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(read(t, img.LayerDirs[0], "secret")).To(Equal(marker))
		})
	}
}

// TestForeignURLs: a layer comes from its registry, whatever its manifest says.
func TestForeignURLs(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg := newRegistry(t)
	var asked atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(elsewhere.Close)
	_, summary := reg.push(t, plainSpec())
	ref := reg.rewrite(t, summary, func(m *imgspec.Manifest, _ *imgspec.Image) { m.Layers[0].URLs = []string{elsewhere.URL} })
	img, err := Pull(t.Context(), ref, newStore(t), reg.config(t))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, img.LayerDirs[0], "a")).To(Equal(marker))
	g.Expect(asked.Load()).To(BeZero())

	foreign := reg.rewrite(t, summary, func(m *imgspec.Manifest, _ *imgspec.Image) {
		m.Layers[0].URLs = []string{elsewhere.URL}
		m.Layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	})
	expectRefused(t, foreign, reg.config(t), errdefs.Unsupported)
	g.Expect(asked.Load()).To(BeZero())
}

// TestChunkedLayer pulls a layer as podman pushes it with zstd:chunked: several frames,
// and a table of contents in skippable ones.
func TestChunkedLayer(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	g := NewWithT(t)
	reg := newRegistry(t)
	_, summary := reg.push(t, images.Spec{Layers: []images.Layer{oneFile("/secret")}, Compression: images.None})
	ref := reg.replaceLayer(t, summary, func(plain []byte) []byte {
		half := len(plain) / 2
		return bytes.Join([][]byte{
			zstdFrame(t, plain[:half], minZstdWindow), zstdFrame(t, plain[half:], minZstdWindow),
			skippable([]byte("the table of contents")), skippable([]byte("GNUlInUx")),
		}, nil)
	})
	img, err := Pull(t.Context(), ref, newStore(t), reg.config(t))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, img.LayerDirs[0], "secret")).To(Equal(marker))
}
