package imageref_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/imageref"
)

// names is one of each value type, as a message between processes has them.
type names struct {
	Manifest imageref.ManifestDigest
	Config   imageref.ConfigDigest
	Image    imageref.ImageID
	Storage  imageref.StorageID
	Ref      imageref.Reference
}

func TestValuesSurviveJSON(t *testing.T) {
	t.Parallel()
	hex := strings.Repeat("0a", 32)
	full := `{"Manifest":"sha256:` + hex + `","Config":"sha256:` + hex + `","Image":"` + hex + `","Storage":"` + hex + `","Ref":"docker.io/library/app:v1@sha256:` + hex + `"}`
	for _, text := range []string{full, `{"Manifest":"","Config":"","Image":"","Storage":"","Ref":""}`} {
		g := NewWithT(t)
		var n names
		g.Expect(json.Unmarshal([]byte(text), &n)).To(Succeed())
		again, err := json.Marshal(n)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(again).To(MatchJSON(text))
		var m names
		g.Expect(json.Unmarshal(again, &m)).To(Succeed())
		g.Expect(m).To(Equal(n))
	}
	for _, text := range []string{
		`{"Manifest":"sha256:0"}`, `{"Config":"x"}`, `{"Image":"0a"}`, `{"Storage":"sha256:` + hex + `"}`, `{"Ref":"UPPER"}`, `{"Ref":7}`,
	} {
		var n names
		NewWithT(t).Expect(json.Unmarshal([]byte(text), &n)).NotTo(Succeed(), text)
		NewWithT(t).Expect(n).To(Equal(names{}), text)
	}
}

func TestPulledReferenceSurvivesJSON(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	ref, err := imageref.ParseReference("registry.test/app:v1")
	g.Expect(err).NotTo(HaveOccurred())
	d, err := imageref.ParseManifestDigest("sha256:" + strings.Repeat("0a", 32))
	g.Expect(err).NotTo(HaveOccurred())
	sent := imageref.PulledReference{Reference: ref, Digest: d, PulledAt: time.Date(2026, 8, 1, 2, 3, 4, 567891234, time.UTC)}
	data, err := json.Marshal(sent)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(data).To(MatchJSON(`{"reference":"registry.test/app:v1","digest":"` + d.String() + `","pulled_at":"2026-08-01T02:03:04.567891234Z"}`))
	var got imageref.PulledReference
	g.Expect(json.Unmarshal(data, &got)).To(Succeed())
	g.Expect(got).To(Equal(sent))
}

// What a reference prints as is that reference.
func FuzzParseReference(f *testing.F) {
	d := "@sha256:" + strings.Repeat("0a", 32)
	for _, s := range []string{
		"busybox", "busybox:1.36", "docker.io/library/busybox", "index.docker.io/a/b", "localhost/a", "localhost:5000/a:b", "[::1]:5000/a",
		"registry.test/team/app:v1" + d, "registry.test/app" + d, "a.b/c__d/e-f.g:H_i.j", "UPPER", "a//b", "a.b_d/e-g.fj", "a:", "@", "sha256:" + d[8:], d[8:],
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := imageref.ParseReference(s)
		if err != nil {
			return
		}
		again, err := imageref.ParseReference(ref.String())
		if err != nil || again.String() != ref.String() {
			t.Fatalf("%q is %q, which is %q: %v", s, ref, again, err)
		}
		if ref.Registry() == "" || ref.Repository() == "" || ref.Tag() == "" && ref.Digest().IsZero() {
			t.Fatalf("%q is not fully qualified: %q", s, ref)
		}
		if !strings.HasPrefix(ref.String(), ref.Repository()) || !strings.HasPrefix(ref.Repository(), ref.Registry()+"/") {
			t.Fatalf("%q: the parts of %q do not fit", s, ref)
		}
	})
}
