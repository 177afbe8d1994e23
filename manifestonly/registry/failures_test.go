package registry_test

import (
	"context"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

type failure struct {
	arrange func(*testing.T, *fakeregistry.Registry, fakeregistry.Pushed)
	byTag   bool // else by digest
	name    string
	want    errdefs.Kind
}

// failures makes every failure through the library, so that a change of its
// errors is noticed here.
func failures() map[string]failure {
	on := func(m fakeregistry.Match, f fakeregistry.Fault) func(*testing.T, *fakeregistry.Registry, fakeregistry.Pushed) {
		return func(_ *testing.T, r *fakeregistry.Registry, _ fakeregistry.Pushed) { r.On(m, f) }
	}
	anyManifest, anyBlob := fakeregistry.Manifest(""), fakeregistry.Blob("")
	return map[string]failure{
		"no such tag":            {name: "/app:none", want: errdefs.NotFound},
		"no such repository":     {name: "/nothing:v1", want: errdefs.NotFound},
		"404 without JSON":       {arrange: on(anyManifest, fakeregistry.Status(404, "<html>gone")), want: errdefs.NotFound},
		"404 as Harbor says it":  {arrange: on(anyManifest, fakeregistry.Status(404, `{"errors":[{"code":"NOT_FOUND","message":"artifact app:v1 not found"}]}`)), want: errdefs.NotFound},
		"401 at the manifest":    {arrange: on(anyManifest, fakeregistry.Status(401, "")), want: errdefs.Unauthorized},
		"403 without JSON":       {arrange: on(anyManifest, fakeregistry.Status(403, "go away")), want: errdefs.Unauthorized},
		"denied":                 {arrange: on(anyManifest, fakeregistry.Status(403, `{"errors":[{"code":"DENIED","message":"no"}]}`)), want: errdefs.Unauthorized},
		"500":                    {arrange: on(anyManifest, fakeregistry.Status(500, "oops")), want: errdefs.RegistryUnavailable},
		"503 at the ping":        {arrange: on(fakeregistry.Any, fakeregistry.Status(503, "")), want: errdefs.RegistryUnavailable},
		"418":                    {arrange: on(anyManifest, fakeregistry.Status(418, "teapot")), want: errdefs.RegistryUnavailable},
		"connection dropped":     {arrange: on(anyManifest, fakeregistry.Drop()), want: errdefs.RegistryUnavailable},
		"registry down":          {arrange: func(_ *testing.T, r *fakeregistry.Registry, _ fakeregistry.Pushed) { r.Stop() }, want: errdefs.RegistryUnavailable},
		"config missing":         {arrange: on(anyBlob, fakeregistry.Status(404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`)), want: errdefs.NotFound},
		"config 502":             {arrange: on(anyBlob, fakeregistry.Status(502, "")), want: errdefs.RegistryUnavailable},
		"config corrupt":         {arrange: on(anyBlob, fakeregistry.Corrupt()), byTag: true, want: errdefs.DigestMismatch},
		"config too short":       {arrange: on(anyBlob, fakeregistry.Shorten(3)), byTag: true, want: errdefs.DigestMismatch},
		"config too long":        {arrange: on(anyBlob, fakeregistry.Lengthen(3)), byTag: true, want: errdefs.DigestMismatch},
		"config endless":         {arrange: on(anyBlob, fakeregistry.Endless("application/json")), byTag: true, want: errdefs.DigestMismatch},
		"manifest corrupt":       {arrange: on(anyManifest, fakeregistry.Corrupt()), want: errdefs.DigestMismatch},
		"manifest of another":    {arrange: on(anyManifest, fakeregistry.Serve(imgspec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`))), want: errdefs.DigestMismatch},
		"manifest oversized":     {arrange: on(anyManifest, fakeregistry.Lengthen(manifestonly.MaxManifestSize)), want: errdefs.TooLarge},
		"manifest endless":       {arrange: on(anyManifest, fakeregistry.Endless("application/json")), byTag: true, want: errdefs.TooLarge},
		"manifest is HTML":       {arrange: on(anyManifest, fakeregistry.Serve("text/html", []byte("<html>"))), byTag: true, want: errdefs.NotAnImage},
		"not a reference":        {name: "/UPPER:case:", want: errdefs.InvalidArgument},
		"manifest schema 1":      {arrange: on(anyManifest, fakeregistry.Serve(fakeregistry.DockerSchema1, []byte(`{"schemaVersion":1,"name":"app","fsLayers":[]}`))), byTag: true, want: errdefs.NotAnImage},
		"digest of another kind": {name: "/app@sha512:" + strings.Repeat("0", 128), want: errdefs.Unsupported},
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	for name, c := range failures() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "app", "v1", fakeregistry.Image{Layers: layers()})
			if c.arrange != nil {
				c.arrange(t, r, p)
			}
			ref := p.Repository + "@" + p.Digest.String()
			switch {
			case c.name != "":
				ref = r.Host() + c.name
			case c.byTag:
				ref = p.Reference
			}
			_, _, err := newNode(t).pull(t, manifestonly.Request{Name: ref})
			g.Expect(err).To(HaveOccurred())
			g.Expect(errdefs.KindOf(err)).To(Equal(c.want), "%v", err)
			g.Expect(err.Error()).To(ContainSubstring(ref), "names the reference")
			for _, l := range p.Layers {
				g.Expect(r.Asked(l.String())).To(BeFalse())
			}
		})
	}
}

// An index that does not hold what it lists is caught although the library gives
// only text for it.
func TestInstanceMismatch(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	index := r.PushIndex(t, "app", "multi", p.Entry("linux", "amd64", ""))
	r.On(fakeregistry.Manifest(p.Digest.String()), fakeregistry.Corrupt())
	_, _, err := newNode(t).pull(t, manifestonly.Request{Name: index.Reference})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DigestMismatch), "%v", err)
}

func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	for name, match := range map[string]fakeregistry.Match{
		"ping": fakeregistry.Any, "manifest": fakeregistry.Manifest(""), "config": fakeregistry.Blob(""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "app", "v1", fakeregistry.Image{})
			r.On(match, fakeregistry.Hang())
			n := newNode(t)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := manifestonly.Pull(ctx, manifestonly.Request{Name: p.Reference}, registry.New(n.config), &storetest.Memory{})
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)

			ctx, cancel = context.WithCancel(t.Context())
			time.AfterFunc(100*time.Millisecond, cancel)
			_, err = manifestonly.Pull(ctx, manifestonly.Request{Name: p.Reference}, registry.New(n.config), &storetest.Memory{})
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
		})
	}
}
