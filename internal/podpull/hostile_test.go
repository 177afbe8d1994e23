package podpull

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// impostor is a child that a hostile registry has taken over: it answers what the
// file says, whatever it is asked.
func impostor(t *testing.T, answer string) string {
	t.Helper()
	dir := t.TempDir()
	file, script := filepath.Join(dir, "answer"), filepath.Join(dir, "child")
	if err := os.WriteFile(file, []byte(answer), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat >/dev/null\nexec cat "+file+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return script
}

func TestHostileChild(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	honest := fakeregistry.New(t, fakeregistry.Options{})
	image := honest.Push(t, "app", "v1", fakeregistry.Image{Layers: [][]byte{[]byte("layer"), []byte("other")}})
	config := honest.Push(t, "app", "v2", fakeregistry.Image{})
	accept, _ := newPuller(t)
	req := manifestonly.Request{Name: image.Reference, Limits: manifestonly.Limits{MaxLayers: 2}}
	img, _, err := manifestonly.Fetch(t.Context(), req, registry.New(accept.Registry), nil)
	g.Expect(err).NotTo(HaveOccurred())

	// lie is the honest answer after a change.
	lie := func(change func(*manifestonly.Image)) string {
		changed := img
		change(&changed)
		data, err := json.Marshal(map[string]any{"result": answer{Image: changed}})
		g.Expect(err).NotTo(HaveOccurred())
		return string(data)
	}
	other, err := imageref.ParseReference("registry.example/victim:v1")
	g.Expect(err).NotTo(HaveOccurred())
	for name, tc := range map[string]struct {
		answer string
		layers int // the limit; 0 for two
		kind   errdefs.Kind
	}{
		"not JSON":       {"an image", 0, errdefs.Internal},
		"nothing":        {"", 0, errdefs.Internal},
		"no image":       {`{"result":{}}`, 0, errdefs.DigestMismatch},
		"no result":      {`{}`, 0, errdefs.Internal},
		"wrong type":     {`{"result":{"image":[1]}}`, 0, errdefs.Internal},
		"too long":       {`{"result":"` + strings.Repeat("x", maxAnswer) + `"}`, 0, errdefs.Internal},
		"long error":     {`{"kind":"not-found","message":"` + strings.Repeat("x", 1<<20) + `"}`, 0, errdefs.Internal},
		"wrong manifest": {lie(func(i *manifestonly.Image) { i.Manifest.Bytes = append([]byte(" "), i.Manifest.Bytes...) }), 0, errdefs.DigestMismatch},
		"wrong config":   {lie(func(i *manifestonly.Image) { i.Config = config.Config }), 0, errdefs.DigestMismatch},
		"other name":     {lie(func(i *manifestonly.Image) { i.Pulled.Reference = other }), 0, errdefs.DigestMismatch},
		"other digest":   {lie(func(i *manifestonly.Image) { i.Pulled.Digest = manifestDigest(t, config.Digest.String()) }), 0, errdefs.DigestMismatch},
		"fewer layers than there are": {
			lie(func(i *manifestonly.Image) { i.Layers, i.LayerBytes = 1, 1 }), 1, errdefs.TooLarge,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			puller, s := newPuller(t)
			puller.Runner.Executable = impostor(t, tc.answer)
			req := req
			if tc.layers != 0 {
				req.Limits.MaxLayers = tc.layers
			}
			_, err := puller.Pull(t.Context(), Place{}, req)
			g.Expect(err).To(HaveOccurred())
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%.400s", err)
			g.Expect(len(err.Error())).To(BeNumerically("<", 64<<10))
			expectNothing(t, s)
		})
	}
	t.Run("honest", func(t *testing.T) { // the others fail for what was changed
		t.Parallel()
		g := NewWithT(t)
		puller, s := newPuller(t)
		puller.Runner.Executable = impostor(t, lie(func(*manifestonly.Image) {}))
		_, err := puller.Pull(t.Context(), Place{}, req)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(s.List(t.Context())).To(HaveLen(1))
	})
	t.Run("quotes a credential", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		puller, s := newPuller(t)
		puller.Runner.Executable = impostor(t, fmt.Sprintf(`{"kind":"unauthorized","message":"sent %s"}`, password))
		_, err := puller.Pull(t.Context(), Place{}, manifestonly.Request{
			Name: image.Reference, Credentials: registryauth.Credentials{Username: "u", Password: password},
		})
		g.Expect(errdefs.Is(err, errdefs.Unauthorized)).To(BeTrue(), "%v", err)
		g.Expect(err.Error()).NotTo(ContainSubstring(password))
		expectNothing(t, s)
	})
}

func manifestDigest(t *testing.T, s string) imageref.ManifestDigest {
	t.Helper()
	d, err := imageref.ParseManifestDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
