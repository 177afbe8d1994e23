package imageref

import (
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

var (
	hexA = strings.Repeat("a", 64)
	hexB = strings.Repeat("b", 64)
)

func TestParseReference(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]struct{ full, repo, registry, tag, digest string }{
		"busybox":                   {"docker.io/library/busybox:latest", "docker.io/library/busybox", "docker.io", "latest", ""},
		"reg.io:5000/a/b:1":         {"reg.io:5000/a/b:1", "reg.io:5000/a/b", "reg.io:5000", "1", ""},
		"reg.io/a@sha256:" + hexA:   {"reg.io/a@sha256:" + hexA, "reg.io/a", "reg.io", "", "sha256:" + hexA},
		"reg.io/a:1@sha256:" + hexA: {"reg.io/a:1@sha256:" + hexA, "reg.io/a", "reg.io", "1", "sha256:" + hexA},
		"localhost/x":               {"localhost/x:latest", "localhost/x", "localhost", "latest", ""},
	} {
		g := NewWithT(t)
		r, err := ParseReference(in)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect([]string{r.String(), r.Repository(), r.Registry(), r.Tag(), r.Digest().String()}).
			To(Equal([]string{want.full, want.repo, want.registry, want.tag, want.digest}))
	}
	for _, in := range []string{"", "reg.io/UPPER", "a:b:c", "reg.io/a@sha256:short", "a.b_c/d", hexA} {
		_, err := ParseReference(in)
		NewWithT(t).Expect(err).To(HaveOccurred(), in)
	}
}

func TestPinDropsTheTag(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r, err := ParseReference("reg.io/a:1")
	g.Expect(err).NotTo(HaveOccurred())
	d, err := ParseManifestDigest("sha256:" + hexB)
	g.Expect(err).NotTo(HaveOccurred())
	p, err := r.Pin(d)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.String()).To(Equal("reg.io/a@sha256:" + hexB))
	g.Expect(p.Tagged().IsZero()).To(BeTrue())
	g.Expect(r.Tagged().String()).To(Equal("reg.io/a:1"))
	_, err = Reference{}.Pin(d)
	g.Expect(err).To(HaveOccurred())
}

func TestIdentitiesDiffer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m, err := ParseManifestDigest("sha256:" + hexA)
	g.Expect(err).NotTo(HaveOccurred())
	c, err := ParseConfigDigest("sha256:" + hexA)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.ImageID().String()).To(Equal(hexA))
	g.Expect(RecordID(m).String()).To(HaveLen(64))
	g.Expect(RecordID(m).String()).NotTo(Equal(hexA), "a record never takes the ID of a full pull")
	g.Expect(RecordID(m)).To(Equal(RecordID(m)))
}

func TestParseIDs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, in := range []string{hexA, "sha256:" + hexA} {
		id, err := ParseImageID(in)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(id.String()).To(Equal(hexA))
	}
	for _, in := range []string{"", "abc", strings.ToUpper(hexA), "sha512:" + hexA, hexA + "0", "sha256:"} {
		_, err := ParseImageID(in)
		g.Expect(err).To(HaveOccurred(), in)
		_, err = ParseStorageID(in)
		g.Expect(err).To(HaveOccurred(), in)
	}
	_, err := ParseStorageID("sha256:" + hexA)
	g.Expect(err).To(HaveOccurred())
}
