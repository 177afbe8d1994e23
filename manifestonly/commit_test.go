package manifestonly_test

import (
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func other(t *testing.T) manifestonly.Image {
	t.Helper()
	return storetest.Make(t, storetest.Spec{Reference: name, Index: "other", Salt: "other", Config: imgspec.ImageConfig{User: "root"}})
}

// A child process in a tenant's network may have been taken over by what it read:
// nothing it says is stored unchecked.
func TestCommitRefuses(t *testing.T) {
	t.Parallel()
	for title, c := range map[string]struct {
		edit func(*testing.T, *manifestonly.Image)
		want errdefs.Kind
	}{
		"nothing":               {func(_ *testing.T, i *manifestonly.Image) { *i = manifestonly.Image{} }, errdefs.InvalidArgument},
		"no reference":          {func(_ *testing.T, i *manifestonly.Image) { i.Pulled.Reference = imageref.Reference{} }, errdefs.InvalidArgument},
		"another digest":        {func(t *testing.T, i *manifestonly.Image) { i.Pulled.Digest = other(t).Pulled.Digest }, errdefs.DigestMismatch},
		"the manifest's digest": {func(_ *testing.T, i *manifestonly.Image) { i.Pulled.Digest = i.Manifest.Digest }, errdefs.DigestMismatch},
		"pinned to another":     {func(t *testing.T, i *manifestonly.Image) { i.Pulled.Reference = other(t).Pulled.Pinned() }, errdefs.DigestMismatch},
		"tag and digest": {func(t *testing.T, i *manifestonly.Image) {
			i.Pulled.Reference = storetest.Ref(t, name+"@"+i.Pulled.Digest.String())
		}, errdefs.InvalidArgument},
		"another config":       {func(t *testing.T, i *manifestonly.Image) { i.Config = other(t).Config }, errdefs.DigestMismatch},
		"longer config":        {func(_ *testing.T, i *manifestonly.Image) { i.Config = append(i.Config, ' ') }, errdefs.DigestMismatch},
		"no config":            {func(_ *testing.T, i *manifestonly.Image) { i.Config = nil }, errdefs.DigestMismatch},
		"another manifest":     {func(t *testing.T, i *manifestonly.Image) { i.Manifest = other(t).Manifest }, errdefs.DigestMismatch},
		"manifest's bytes":     {func(t *testing.T, i *manifestonly.Image) { i.Manifest.Bytes = other(t).Manifest.Bytes }, errdefs.DigestMismatch},
		"manifest's digest":    {func(t *testing.T, i *manifestonly.Image) { i.Manifest.Digest = other(t).Manifest.Digest }, errdefs.DigestMismatch},
		"manifest without":     {func(_ *testing.T, i *manifestonly.Image) { i.Manifest = manifestonly.Blob{} }, errdefs.DigestMismatch},
		"manifest is an index": {func(_ *testing.T, i *manifestonly.Image) { i.Manifest, i.Indexes = i.Indexes[0], nil }, errdefs.NotAnImage},
		"index is a manifest":  {func(_ *testing.T, i *manifestonly.Image) { asTop(i, i.Manifest) }, errdefs.DigestMismatch},
		"another index":        {func(t *testing.T, i *manifestonly.Image) { asTop(i, other(t).Indexes[0]) }, errdefs.DigestMismatch},
		"index's bytes":        {func(t *testing.T, i *manifestonly.Image) { i.Indexes[0].Bytes = other(t).Indexes[0].Bytes }, errdefs.DigestMismatch},
		"too many indexes": {func(_ *testing.T, i *manifestonly.Image) {
			asTop(i, i.Indexes[0], i.Indexes[0], i.Indexes[0], i.Indexes[0])
		}, errdefs.NotAnImage},
		"indexes too large": {func(_ *testing.T, i *manifestonly.Image) {
			i.Indexes[0].Bytes = make([]byte, manifestonly.MaxIndexBytes+1)
		}, errdefs.TooLarge},
		"index too large": {func(_ *testing.T, i *manifestonly.Image) {
			i.Indexes[0].Bytes = make([]byte, manifestonly.MaxManifestSize+1)
		}, errdefs.TooLarge},
		"manifest too large": {func(_ *testing.T, i *manifestonly.Image) {
			i.Indexes = nil
			i.Pulled.Digest = i.Manifest.Digest
			i.Manifest.Bytes = make([]byte, manifestonly.MaxManifestSize+1)
		}, errdefs.TooLarge},
		"signatures too large": {func(_ *testing.T, i *manifestonly.Image) {
			i.Signatures = [][]byte{make([]byte, manifestonly.MaxSignatureBytes+1)}
		}, errdefs.TooLarge},
		"too many signatures": {func(_ *testing.T, i *manifestonly.Image) { i.Signatures = make([][]byte, manifestonly.MaxSignatures+1) }, errdefs.TooLarge},
		"a digest but sha256": {func(t *testing.T, i *manifestonly.Image) { sha512(t, i) }, errdefs.NotAnImage},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			img := storetest.Make(t, storetest.Spec{Reference: name, Index: "i", Layers: 2})
			c.edit(t, &img)
			store := &storetest.Memory{}
			_, err := manifestonly.Commit(t.Context(), img, store)
			g.Expect(errdefs.KindOf(err)).To(Equal(c.want), "%v", err)
			records, err := store.List(t.Context())
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(records).To(BeEmpty())
		})
	}
}

// asTop makes the reference stand for these indexes.
func asTop(i *manifestonly.Image, indexes ...manifestonly.Blob) {
	i.Indexes, i.Pulled.Digest = indexes, indexes[0].Digest
}

func sha512(t *testing.T, i *manifestonly.Image) {
	t.Helper()
	i.Indexes = nil
	i.Manifest.Digest = storetest.Digest(t, "sha512:"+strings.Repeat("0", 128))
	i.Pulled.Digest = i.Manifest.Digest
}

// What follows from the bytes is taken from the bytes.
func TestCommitBelievesTheBytes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	img := storetest.Make(t, storetest.Spec{Reference: name, Index: "i", Layers: 2, Config: imgspec.ImageConfig{User: "web"}})
	want := img.Record()
	lie := img
	lie.Parsed.Config.User, lie.Layers, lie.EncryptedLayers, lie.LayerBytes = "root", 0, 7, -1
	lie.ConfigDigest = imageref.ConfigDigest{}
	record, err := manifestonly.Commit(t.Context(), lie, &storetest.Memory{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(record).To(Equal(want))
}

func TestCommitTakesNoTimeToCome(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{{}, time.Now().Add(1000 * time.Hour)} {
		g := NewWithT(t)
		img := storetest.Make(t, storetest.Spec{Reference: name})
		img.Pulled.PulledAt = at
		before := time.Now().Add(-time.Second)
		record, err := manifestonly.Commit(t.Context(), img, &storetest.Memory{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(record.References[0].PulledAt).To(BeTemporally(">", before))
		g.Expect(record.References[0].PulledAt).NotTo(BeTemporally(">", time.Now()))
	}
}
