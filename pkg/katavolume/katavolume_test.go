package katavolume_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/katavolume"
)

func guestPull() katavolume.Volume {
	return katavolume.Volume{
		VolumeType: katavolume.TypeImageGuestPull,
		Source:     "registry.example/app@sha256:" + strings.Repeat("a", 64),
		FSType:     "overlay_fs",
		ImagePull:  &katavolume.Metadata{Metadata: map[string]string{"io.kubernetes.cri-o.ImageName": "x", "": "empty key"}},
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, v := range []katavolume.Volume{
		guestPull(),
		{VolumeType: katavolume.TypeDirectBlock, DirectVolume: &katavolume.Metadata{Metadata: map[string]string{"a": "b"}}},
		{VolumeType: katavolume.TypeImageNydusFs, Source: "s", NydusImage: &katavolume.NydusImage{Config: "{}", SnapshotDir: "/d"}, Options: []string{"ro"}},
		{VolumeType: katavolume.TypeImageRawBlock, Source: "/dev/x", DmVerity: &katavolume.DmVerity{HashType: "sha256", BlockNum: 1, BlockSize: 512, HashSize: 4096, Offset: 8}},
	} {
		t.Run(v.VolumeType, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			option, err := v.Option()
			g.Expect(err).NotTo(HaveOccurred())
			got, found, err := katavolume.FromOptions([]string{"ro", option})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(found).To(BeTrue())
			g.Expect(got).To(Equal(v))
		})
	}
}

// What CRI-O 1.34 sends (internal/oci/runtime_vm.go, addVolumeMountsToCreateRequest).
func TestFromCRIO(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	const sent = `{"volume_type":"image_guest_pull","source":"quay.io/app@sha256:00","fs_type":"overlay_fs","image_pull":{"metadata":{"io.container.manager":"cri-o"}},"new_key":1}`
	v, found, err := katavolume.FromOptions([]string{katavolume.OptionName + "=" + base64.StdEncoding.EncodeToString([]byte(sent))})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found).To(BeTrue())
	g.Expect(v.Source).To(Equal("quay.io/app@sha256:00"))
	g.Expect(v.ImagePull.Metadata).To(HaveKeyWithValue("io.container.manager", "cri-o"))
}

func TestNoVolume(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, found, err := katavolume.FromOptions([]string{"ro", "io.katacontainers.volumes=x", "lowerdir=a"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found).To(BeFalse())
}

func TestHostileVolumes(t *testing.T) {
	t.Parallel()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	var many strings.Builder
	for i := range 20 << 10 {
		fmt.Fprintf(&many, `"%d":"",`, i)
	}
	for name, tc := range map[string]struct {
		value string
		kind  errdefs.Kind
		text  string
	}{
		"not base64":        {"***", errdefs.InvalidArgument, "illegal base64"},
		"url base64":        {"_-8=", errdefs.InvalidArgument, "illegal base64"},
		"line breaks":       {"e30=\ne30=", errdefs.InvalidArgument, "illegal base64"},
		"not JSON":          {b64("{"), errdefs.InvalidArgument, "JSON"},
		"two documents":     {b64("{}{}"), errdefs.InvalidArgument, "invalid character"},
		"wrong type":        {b64(`{"volume_type":7}`), errdefs.InvalidArgument, "volume_type"},
		"no type":           {b64(`{}`), errdefs.InvalidArgument, "volume_type"},
		"unknown type":      {b64(`{"volume_type":"image_guest_pull2"}`), errdefs.InvalidArgument, "volume_type"},
		"no source":         {b64(`{"volume_type":"image_guest_pull","image_pull":{"metadata":{}}}`), errdefs.InvalidArgument, "source"},
		"no image_pull":     {b64(`{"volume_type":"image_guest_pull","source":"a"}`), errdefs.InvalidArgument, "image_pull.metadata"},
		"null metadata":     {b64(`{"volume_type":"image_guest_pull","source":"a","image_pull":{"metadata":null}}`), errdefs.InvalidArgument, "image_pull.metadata"},
		"too many metadata": {b64(`{"volume_type":"image_guest_pull","source":"a","image_pull":{"metadata":{` + many.String() + `"x":""}}}`), errdefs.InvalidArgument, "entries"},
		"direct without":    {b64(`{"volume_type":"direct_block"}`), errdefs.InvalidArgument, "direct_volume"},
		"nydus without":     {b64(`{"volume_type":"layer_nydus_fs","source":"a"}`), errdefs.InvalidArgument, "nydus_image"},
		"too large":         {strings.Repeat("A", 2<<20+4), errdefs.TooLarge, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, found, err := katavolume.FromOptions([]string{katavolume.OptionName + "=" + tc.value})
			g.Expect(found).To(BeFalse())
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind))
		})
	}
}

func TestInvalidIsNotEncoded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	v := guestPull()
	v.Source = ""
	_, err := v.Option()
	g.Expect(err).To(MatchError(ContainSubstring("source")))
}

func FuzzFromOptions(f *testing.F) {
	option, err := guestPull().Option()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(option)
	f.Add(katavolume.OptionName + "=e30=")
	f.Fuzz(func(t *testing.T, option string) {
		v, found, err := katavolume.FromOptions([]string{option})
		if !found || err != nil {
			return
		}
		if _, err := v.Option(); err != nil { // what is accepted can be passed on
			t.Fatal(err)
		}
	})
}
