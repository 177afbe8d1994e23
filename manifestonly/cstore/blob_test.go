package cstore

import (
	"os"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// What is damaged on disk is not handed on: the registry is asked instead.
func TestBlobIsChecked(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Index: "i"})
	rec, err := p.Put(t.Context(), img)
	g.Expect(err).NotTo(HaveOccurred())
	for d, key := range map[digest.Digest]string{
		rec.Manifest.Digest():     manifestPrefix + rec.Manifest.String(),
		rec.ConfigDigest.Digest(): rec.ConfigDigest.String(),
		rec.Indexes[0].Digest():   manifestPrefix + rec.Indexes[0].String(),
	} {
		_, err := p.Blob(t.Context(), "registry.test/app", d)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(os.WriteFile(p.fileOf(rec, key), []byte("{}"), 0o600)).To(Succeed())
		_, err = p.Blob(t.Context(), "registry.test/app", d)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
		g.Expect(os.Remove(p.fileOf(rec, key))).To(Succeed())
		_, err = p.Blob(t.Context(), "registry.test/app", d)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	}
	for _, d := range []digest.Digest{"", "sha256:", "md5:00", "../../../etc/passwd"} {
		_, err := p.Blob(t.Context(), "registry.test/app", d)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%q", d)
	}
}
