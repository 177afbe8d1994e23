package bundlegen

import (
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func record(t testing.TB, config imgspec.ImageConfig) (imageref.Record, imageref.PulledReference) {
	t.Helper()
	g := NewWithT(t)
	manifest, err := imageref.ParseManifestDigest(digest.FromString("manifest").String())
	g.Expect(err).NotTo(HaveOccurred())
	index, err := imageref.ParseManifestDigest(digest.FromString("index").String())
	g.Expect(err).NotTo(HaveOccurred())
	conf, err := imageref.ParseConfigDigest(digest.FromString("config").String())
	g.Expect(err).NotTo(HaveOccurred())
	ref, err := imageref.ParseReference("registry.example/app:1")
	g.Expect(err).NotTo(HaveOccurred())
	if config.Cmd == nil {
		config.Cmd = []string{"run"}
	}
	pulled := imageref.PulledReference{Reference: ref, Digest: index}
	return imageref.Record{
		StorageID: imageref.RecordID(manifest), Manifest: manifest, ConfigDigest: conf,
		References: []imageref.PulledReference{pulled}, Image: imgspec.Image{Config: config},
	}, pulled
}

func TestRewriteUser(t *testing.T) {
	t.Parallel()
	one := ptr(int64(1))
	nobody := ptr(int64(PlaceholderID))
	for _, tc := range []struct {
		name     string
		image    string
		req      Request
		resolves bool
		uid      int64
		gid      *int64
		user     string
	}{
		{"no user", "", Request{}, true, 0, nil, `{"user":""}`},
		{"root by number", "0", Request{}, true, 0, nil, `{"user":"0"}`},
		{"root by name is a name", "root", Request{}, true, PlaceholderID, nobody, `{"user":"root"}`},
		{"name", "web", Request{}, true, PlaceholderID, nobody, `{"user":"web"}`},
		{"name, known group", "web:1", Request{}, true, PlaceholderID, one, `{"user":"web:1"}`},
		{"known user, group name", "7:staff", Request{}, true, 7, nobody, `{"user":"7:staff"}`},
		{"group name alone", ":staff", Request{}, true, 0, nobody, `{"user":":staff"}`},
		{"number: its group is in passwd", "7", Request{}, true, 7, nobody, `{"user":"7"}`},
		{"numbers", "7:1", Request{}, true, 7, one, `{"user":"7:1"}`},
		{"request name", "", Request{RunAsUsername: "web", RunAsGroup: one}, true, PlaceholderID, one, `{"user":"web","group":1}`},
		{"request number", "web:staff", Request{RunAsUser: ptr(int64(9))}, true, 9, nobody, `{"user":"9"}`},
		{"request root", "web", Request{RunAsUser: ptr(int64(0))}, true, 0, nil, `{"user":"0"}`},
		{"no lookup: no user", "", Request{}, false, 0, nil, `{"user":""}`},
		{"no lookup: number", "7", Request{}, false, 7, nil, `{"user":"7"}`},
		{"no lookup: numbers", "7:1", Request{}, false, 7, one, `{"user":"7:1"}`},
		{"no lookup: request over a name", "web", Request{RunAsUser: ptr(int64(9)), RunAsGroup: one}, false, 9, one, `{"user":"9","group":1}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, imgspec.ImageConfig{User: tc.image})
			got, err := Rewrite(rec, pulled, tc.req, RewriteOptions{ResolvesNames: tc.resolves})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got.RunAsUser).To(Equal(tc.uid))
			g.Expect(got.RunAsGroup).To(Equal(tc.gid))
			g.Expect(got.Annotations[annotations.User]).To(Equal(tc.user))
		})
	}
}

func TestRewriteRefusesNamesNobodyResolves(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		image string
		req   Request
	}{
		"image user":   {"web", Request{}},
		"image root":   {"root", Request{}},
		"image group":  {"7:staff", Request{}},
		"request user": {"7", Request{RunAsUsername: "web"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, imgspec.ImageConfig{User: tc.image})
			_, err := Rewrite(rec, pulled, tc.req, RewriteOptions{})
			g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue())
			g.Expect(err).To(MatchError(And(ContainSubstring("set runAsUser"), ContainSubstring("registry.example/app:1"))))
		})
	}
}

func TestRewriteRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config imgspec.ImageConfig
		req    Request
		kind   errdefs.Kind
	}{
		"wrong request":         {imgspec.ImageConfig{}, Request{RunAsGroup: ptr(int64(1))}, errdefs.InvalidArgument},
		"nothing to run":        {imgspec.ImageConfig{Cmd: []string{}}, Request{}, errdefs.InvalidArgument},
		"env that panics CRI-O": {imgspec.ImageConfig{Env: []string{"A=1", "B"}}, Request{}, errdefs.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, tc.config)
			_, err := Rewrite(rec, pulled, tc.req, RewriteOptions{ResolvesNames: true})
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind))
			g.Expect(err).To(MatchError(ContainSubstring("registry.example/app:1")))
		})
	}
}

func TestRewriteTakesMalformedEnvWhereCRIODoes(t *testing.T) {
	t.Parallel()
	rec, pulled := record(t, imgspec.ImageConfig{Env: []string{"B"}})
	_, err := Rewrite(rec, pulled, Request{Env: []string{"A=1"}}, RewriteOptions{})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
}

func TestRewriteImageAndAnnotations(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	rec, pulled := record(t, imgspec.ImageConfig{Volumes: map[string]struct{}{"/b": {}, "/a": {}}})
	pinned := "registry.example/app@" + digest.FromString("index").String()
	want := map[string]string{
		annotations.CRIOImageName: pinned,
		annotations.RecordID:      rec.StorageID.String(),
		annotations.ImageID:       digest.FromString("config").Encoded(),
		annotations.ImageRef:      pinned,
		annotations.UserImage:     "registry.example/app:1",
		annotations.User:          `{"user":""}`,
		annotations.ImageVolumes:  `["/a","/b"]`,
	}
	got, err := Rewrite(rec, pulled, Request{}, RewriteOptions{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.Image).To(Equal(rec.StorageID))
	g.Expect(got.UserSpecifiedImage.String()).To(Equal("registry.example/app:1"))
	g.Expect(got.Annotations).To(Equal(want))

	got, err = Rewrite(rec, pulled, Request{}, RewriteOptions{KeepTag: true})
	g.Expect(err).NotTo(HaveOccurred())
	want[annotations.CRIOImageName] = "registry.example/app:1"
	g.Expect(got.Annotations).To(Equal(want))
}

// A pod annotation reaches the spec unless the container sets the same key, so every
// key that the shim trusts must always be there.
func TestRewriteAlwaysSetsEveryKey(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	rec, pulled := record(t, imgspec.ImageConfig{})
	got, err := Rewrite(rec, pulled, Request{}, RewriteOptions{})
	g.Expect(err).NotTo(HaveOccurred())
	for _, key := range []string{
		annotations.CRIOImageName, annotations.RecordID, annotations.ImageID, annotations.ImageRef,
		annotations.UserImage, annotations.User, annotations.ImageVolumes,
	} {
		g.Expect(got.Annotations).To(HaveKey(key))
		g.Expect(strings.TrimSpace(got.Annotations[key])).NotTo(BeEmpty(), key)
	}
	g.Expect(got.Annotations[annotations.ImageVolumes]).To(Equal("[]"))
}
