package manifestonly_test

import (
	"context"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// source is a registry in memory. It serves what it is told to, lies included.
type source struct {
	names  map[string][]string // short names
	tags   map[string][]byte
	blobs  map[string][]byte // by digest
	verify error
	sigs   [][]byte
	opened []string
	closed int
	asked  []string
	access manifestonly.Access
	// contact, where set, is called at every Open.
	contact func(context.Context)
}

func (s *source) Resolve(_ context.Context, name string) ([]imageref.Reference, error) {
	list, ok := s.names[name]
	if !ok {
		list = []string{name}
	}
	var refs []imageref.Reference
	for _, n := range list {
		ref, err := imageref.ParseReference(n)
		if err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "resolve", err)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

func (s *source) Open(ctx context.Context, ref imageref.Reference, access manifestonly.Access) (manifestonly.Remote, error) {
	s.opened = append(s.opened, ref.String())
	s.access = access
	if s.contact != nil {
		s.contact(ctx)
	}
	body, ok := s.tags[ref.String()]
	if !ok {
		return nil, errdefs.Newf(errdefs.NotFound, "pull "+ref.String(), "not here; you sent %s", access.Credentials.Password)
	}
	return &remote{source: s, top: body}, nil
}

type remote struct {
	*source
	top []byte
}

func (r *remote) Manifest(_ context.Context, d imageref.ManifestDigest) ([]byte, error) {
	r.asked = append(r.asked, "manifest "+d.String())
	if d.IsZero() {
		return r.top, nil
	}
	return r.get(d.String())
}

func (r *remote) Prime(m manifestonly.Blob) { r.asked = append(r.asked, "prime "+m.Digest.String()) }

func (r *remote) Verify(_ context.Context, d imageref.ManifestDigest) ([][]byte, error) {
	r.asked = append(r.asked, "verify "+d.String())
	return r.sigs, r.verify
}

func (r *remote) Config(_ context.Context, c manifestonly.ConfigRef) ([]byte, error) {
	r.asked = append(r.asked, "config "+c.Digest().String())
	return r.get(c.Digest().String())
}

func (r *remote) get(d string) ([]byte, error) {
	if b, ok := r.blobs[d]; ok {
		return b, nil
	}
	return nil, errdefs.New(errdefs.NotFound, "read "+d, nil)
}

func (r *remote) Close() error { r.closed++; return nil }

const name = "registry.test/app:v1"

// serving returns a source that serves img under name.
func serving(img manifestonly.Image) *source {
	s := &source{
		tags: map[string][]byte{name: img.Manifest.Bytes},
		blobs: map[string][]byte{
			img.ConfigDigest.String():    img.Config,
			img.Manifest.Digest.String(): img.Manifest.Bytes,
		},
	}
	for _, index := range img.Indexes {
		s.tags[name] = index.Bytes
	}
	return s
}

var amd64 = imgspec.Platform{OS: "linux", Architecture: "amd64"}

func pull(t *testing.T, s *source) (manifestonly.Result, error) {
	t.Helper()
	store := &storetest.Memory{}
	result, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: name, Platform: amd64}, s, store)
	records, listErr := store.List(t.Context())
	g := NewWithT(t)
	g.Expect(listErr).NotTo(HaveOccurred())
	g.Expect(records).To(HaveLen(map[bool]int{true: 1}[err == nil]), "a record if and only if the pull succeeded")
	g.Expect(s.closed).To(Equal(len(s.tags)), "every remote is closed")
	return result, err
}

func TestPull(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	img := storetest.Make(t, storetest.Spec{Reference: name, Index: "i", Layers: 2, Encrypted: true, Config: imgspec.ImageConfig{User: "web"}})
	s := serving(img)
	s.sigs = [][]byte{[]byte("\xa0sig")}
	result, err := pull(t, s)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.asked).To(Equal([]string{
		"manifest ",
		"manifest " + img.Manifest.Digest.String(),
		"verify " + img.Manifest.Digest.String(),
		"config " + img.ConfigDigest.String(),
	}), "in this order, and nothing else")
	img.Pulled.PulledAt = result.Pulled.PulledAt
	img.Signatures = s.sigs
	g.Expect(result.Pulled).To(Equal(img.Pulled))
	g.Expect(result.Record).To(Equal(img.Record()))
}

func TestPullWithoutIndexVerifiesTheTop(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := serving(storetest.Make(t, storetest.Spec{Reference: name}))
	_, err := pull(t, s)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.asked[1]).To(Equal("verify "))
}

func TestPullRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		arrange func(*source, manifestonly.Image)
		want    errdefs.Kind
	}{
		"policy": {func(s *source, _ manifestonly.Image) { s.verify = errdefs.New(errdefs.PolicyRefused, "check", nil) }, errdefs.PolicyRefused},
		"another config": {func(s *source, i manifestonly.Image) {
			s.blobs[i.ConfigDigest.String()] = append([]byte(" "), i.Config[1:]...)
		}, errdefs.DigestMismatch},
		"longer config": {func(s *source, i manifestonly.Image) { s.blobs[i.ConfigDigest.String()] = append(i.Config, ' ') }, errdefs.DigestMismatch},
		"no config":     {func(s *source, i manifestonly.Image) { delete(s.blobs, i.ConfigDigest.String()) }, errdefs.NotFound},
		"another instance": {func(s *source, i manifestonly.Image) {
			s.blobs[i.Manifest.Digest.String()] = append(i.Manifest.Bytes, ' ')
		}, errdefs.DigestMismatch},
		"manifest too large": {func(s *source, i manifestonly.Image) {
			s.blobs[i.Manifest.Digest.String()] = make([]byte, manifestonly.MaxManifestSize+1)
		}, errdefs.TooLarge},
		"too many signatures": {func(s *source, _ manifestonly.Image) { s.sigs = make([][]byte, manifestonly.MaxSignatures+1) }, errdefs.TooLarge},
		"large signatures": {func(s *source, _ manifestonly.Image) {
			s.sigs = [][]byte{make([]byte, manifestonly.MaxSignatureBytes+1)}
		}, errdefs.TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := storetest.Make(t, storetest.Spec{Reference: "registry.test/app:v1", Index: "i", Layers: 1})
			s := serving(img)
			c.arrange(s, img)
			_, err := pull(t, s)
			g := NewWithT(t)
			g.Expect(errdefs.KindOf(err)).To(Equal(c.want), "%v", err)
			g.Expect(s.closed).To(Equal(1))
		})
	}
}

// A digest reference fixes the bytes whatever the source says, and a tag next to
// a digest is dropped.
func TestPullByDigest(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	img := storetest.Make(t, storetest.Spec{Reference: name})
	pinned := img.Pulled.Pinned().String()
	s := serving(img)
	s.tags = map[string][]byte{pinned: img.Manifest.Bytes}
	both := "registry.test/app:v9@" + img.Manifest.Digest.String()
	result, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: both}, s, &storetest.Memory{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Pulled.Reference.String()).To(Equal(pinned))

	s.tags[pinned] = append(img.Manifest.Bytes, '\n')
	_, err = manifestonly.Pull(t.Context(), manifestonly.Request{Name: pinned}, s, &storetest.Memory{})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DigestMismatch), "%v", err)
}

func TestPullTriesCandidates(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := serving(storetest.Make(t, storetest.Spec{Reference: name}))
	s.names = map[string][]string{"app": {"first.test/app:v1", name, "third.test/app:v1"}, "gone": {"a.test/gone", "b.test/gone"}, "none": {}}
	result, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: "app"}, s, &storetest.Memory{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Pulled.Reference.String()).To(Equal(name))
	g.Expect(s.opened).To(Equal([]string{"first.test/app:v1", name}))

	cred := registryauth.Credentials{Username: "u", Password: "hunter2"}
	_, err = manifestonly.Pull(t.Context(), manifestonly.Request{Name: "gone", Credentials: cred, Namespace: "ns"}, s, &storetest.Memory{})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	g.Expect(err).To(MatchError(ContainSubstring("b.test/gone")), "the last one's error, as CRI-O's")
	g.Expect(err.Error()).NotTo(ContainSubstring("hunter2"))
	g.Expect(s.access).To(Equal(manifestonly.Access{Credentials: cred, Namespace: "ns"}))

	_, err = manifestonly.Pull(t.Context(), manifestonly.Request{Name: "none"}, s, &storetest.Memory{})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
}
