package katavolume_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
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

// valid is a volume of each type, and the JSON that Kata's shims know it by.
func valid() map[string]struct {
	volume katavolume.Volume
	json   string
} {
	type one = struct {
		volume katavolume.Volume
		json   string
	}
	verity := func() *katavolume.DmVerity {
		return &katavolume.DmVerity{HashType: "sha256", Hash: strings.Repeat("0a", 32), BlockNum: 2, BlockSize: 512, HashSize: 4096, Offset: 4096}
	}
	const verityJSON = `"dm_verity":{"hashtype":"sha256","hash":"` +
		`0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","blocknum":2,"blocksize":512,"hashsize":4096,"offset":4096}`
	nydus := &katavolume.NydusImage{Config: `{"a":1}`, SnapshotDir: "/d"}
	const nydusJSON = `"nydus_image":{"config":"{\"a\":1}","snapshot_dir":"/d"}`
	return map[string]one{
		katavolume.TypeDirectBlock: {
			katavolume.Volume{VolumeType: "direct_block", Source: "/dev/x", FSType: "ext4", Options: []string{"ro", "noatime"},
				DirectVolume: &katavolume.Metadata{Metadata: map[string]string{"fsGroup": "1"}}},
			`{"volume_type":"direct_block","source":"/dev/x","fs_type":"ext4","options":["ro","noatime"],"direct_volume":{"metadata":{"fsGroup":"1"}}}`,
		},
		katavolume.TypeImageRawBlock: {
			katavolume.Volume{VolumeType: "image_raw_block", Source: "/img", FSType: "erofs", DmVerity: verity()},
			`{"volume_type":"image_raw_block","source":"/img","fs_type":"erofs",` + verityJSON + `}`,
		},
		katavolume.TypeLayerRawBlock: {
			katavolume.Volume{VolumeType: "layer_raw_block", Source: "/layer", FSType: "erofs"},
			`{"volume_type":"layer_raw_block","source":"/layer","fs_type":"erofs"}`,
		},
		katavolume.TypeImageNydusBlock: {
			katavolume.Volume{VolumeType: "image_nydus_block", Source: "/meta", FSType: "rafsv6", NydusImage: nydus, DmVerity: verity()},
			`{"volume_type":"image_nydus_block","source":"/meta","fs_type":"rafsv6",` + nydusJSON + `,` + verityJSON + `}`,
		},
		katavolume.TypeLayerNydusBlock: {
			katavolume.Volume{VolumeType: "layer_nydus_block", Source: "/meta", FSType: "rafsv6", NydusImage: nydus},
			`{"volume_type":"layer_nydus_block","source":"/meta","fs_type":"rafsv6",` + nydusJSON + `}`,
		},
		katavolume.TypeImageNydusFs: {
			katavolume.Volume{VolumeType: "image_nydus_fs", Source: "/meta", FSType: "rafsv5", NydusImage: nydus},
			`{"volume_type":"image_nydus_fs","source":"/meta","fs_type":"rafsv5",` + nydusJSON + `}`,
		},
		katavolume.TypeLayerNydusFs: {
			katavolume.Volume{VolumeType: "layer_nydus_fs", Source: "/meta", FSType: "rafsv6", NydusImage: nydus},
			`{"volume_type":"layer_nydus_fs","source":"/meta","fs_type":"rafsv6",` + nydusJSON + `}`,
		},
		katavolume.TypeImageGuestPull: {
			katavolume.GuestPull("r/app@sha256:00", map[string]string{"b": "<&>", "a": "\u2028\"", "": "empty key"}),
			`{"volume_type":"image_guest_pull","source":"r/app@sha256:00","fs_type":"overlay_fs",` +
				`"image_pull":{"metadata":{"":"empty key","a":"\u2028\"","b":"\u003c\u0026\u003e"}}}`,
		},
	}
}

func TestEveryTypeByteForByte(t *testing.T) {
	t.Parallel()
	all := valid()
	NewWithT(t).Expect(all).To(HaveLen(8))
	for name, tc := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			option, err := tc.volume.Option()
			g.Expect(err).NotTo(HaveOccurred())
			data, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(option, katavolume.OptionName+"="))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(string(data)).To(Equal(tc.json))
			got, found, err := katavolume.FromOptions([]string{"ro", option})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(found).To(BeTrue())
			g.Expect(got).To(Equal(tc.volume))
			g.Expect(tc.volume.VolumeType).To(Equal(name))
		})
	}
}

// TestInvalid: what either shim refuses, in whichever direction, with the field's name.
func TestInvalid(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		of    string
		spoil func(*katavolume.Volume)
		field string
	}{
		{"image_guest_pull", func(v *katavolume.Volume) { v.Source = "" }, "source: "},
		{"image_guest_pull", func(v *katavolume.Volume) { v.ImagePull = nil }, "image_pull.metadata: "},
		{"image_guest_pull", func(v *katavolume.Volume) { v.ImagePull.Metadata = nil }, "image_pull.metadata: "},
		{"image_guest_pull", func(v *katavolume.Volume) { v.VolumeType = "" }, "volume_type: "},
		{"image_guest_pull", func(v *katavolume.Volume) { v.VolumeType = "image_guest_Pull" }, "volume_type: "},
		{"direct_block", func(v *katavolume.Volume) { v.Source = "" }, "source: "},
		{"direct_block", func(v *katavolume.Volume) { v.FSType = "" }, "fs_type: "},
		{"direct_block", func(v *katavolume.Volume) { v.DirectVolume = nil }, "direct_volume.metadata: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.FSType = "" }, "fs_type: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.Source = "" }, "source: "},
		{"layer_raw_block", func(v *katavolume.Volume) { v.FSType = "" }, "fs_type: "},
		{"layer_raw_block", func(v *katavolume.Volume) { v.ImagePull = &katavolume.Metadata{} }, "image_pull.metadata: "},
		{"image_nydus_block", func(v *katavolume.Volume) { v.FSType = "rafsv5" }, "fs_type: "},
		{"layer_nydus_block", func(v *katavolume.Volume) { v.NydusImage = nil }, "nydus_image: "},
		{"image_nydus_fs", func(v *katavolume.Volume) { v.FSType = "erofs" }, "fs_type: "},
		{"image_nydus_fs", func(v *katavolume.Volume) { v.NydusImage = &katavolume.NydusImage{Config: "x"} }, "nydus_image.snapshot_dir: "},
		{"layer_nydus_fs", func(v *katavolume.Volume) { v.NydusImage = &katavolume.NydusImage{SnapshotDir: "x"} }, "nydus_image.config: "},
		{"layer_nydus_fs", func(v *katavolume.Volume) { v.DmVerity = &katavolume.DmVerity{HashType: "md5"} }, "dm_verity.hashtype: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.Hash = "0a" }, "dm_verity.hash: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.Hash = strings.Repeat("x", 64) }, "dm_verity.hash: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.HashType = "SHA1" }, "dm_verity.hash: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.BlockNum = 0 }, "dm_verity.blocknum: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.BlockNum = 1 << 32 }, "dm_verity.blocknum: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.BlockSize = 511 }, "dm_verity.blocksize: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.HashSize = 512<<10 + 1 }, "dm_verity.hashsize: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.HashSize = 0 }, "dm_verity.hashsize: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.Offset = 4097 }, "dm_verity.offset: "},
		{"image_raw_block", func(v *katavolume.Volume) { v.DmVerity.Offset = 0 }, "dm_verity.offset: "},
	} {
		v := valid()[tc.of].volume
		tc.spoil(&v)
		t.Run(tc.of+" "+tc.field, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := v.Option()
			g.Expect(err).To(MatchError(HavePrefix("kata volume: " + tc.field)))
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
			data, err := json.Marshal(v)
			g.Expect(err).NotTo(HaveOccurred())
			_, found, err := katavolume.FromOptions([]string{katavolume.OptionName + "=" + base64.StdEncoding.EncodeToString(data)})
			g.Expect(found).To(BeFalse())
			g.Expect(err).To(HaveOccurred())
			g.Expect(err.Error()).To(ContainSubstring(strings.TrimSuffix(tc.field, ": "))) // null, where Go has nothing
		})
	}
}

// What stock CRI-O 1.34 sent for a sandbox and a container (taken by test/48-kata.bats, which
// compares it with what CRI-O sends now).
func TestCaptured(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"crio-1.34-sandbox", "crio-1.34-container"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			data, err := os.ReadFile(filepath.Join("testdata", name+".option"))
			g.Expect(err).NotTo(HaveOccurred())
			sent := strings.TrimSpace(string(data))
			v, found, err := katavolume.FromOptions([]string{sent})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(found).To(BeTrue())
			g.Expect(v.Option()).To(Equal(sent))
			g.Expect(katavolume.GuestPull(v.Source, v.ImagePull.Metadata)).To(Equal(v))
			g.Expect(v.ImagePull.Metadata).To(HaveKeyWithValue("io.kubernetes.cri-o.ImageName", v.Source))
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
	pull := func(more string) string {
		return `{"volume_type":"image_guest_pull","source":"a","image_pull":{"metadata":{}},` + more + `}`
	}
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
		"line break":        {"e30=\n", errdefs.InvalidArgument, "line break"},
		"not UTF-8":         {b64("{\"volume_type\":\"image_guest_pull\",\"source\":\"\xff\"}"), errdefs.InvalidArgument, "UTF-8"},
		"another case":      {b64(pull(`"Source":"b"`)), errdefs.InvalidArgument, `source: written as "Source"`},
		"a key twice":       {b64(pull(`"source":"b"`)), errdefs.InvalidArgument, "source: twice"},
		"a key escaped":     {b64(pull(`"sour\u0063e":"b"`)), errdefs.InvalidArgument, "source: twice"},
		"a long s":          {b64(pull(`"ſource":"b"`)), errdefs.InvalidArgument, "source: written"},
		"null list":         {b64(pull(`"options":null`)), errdefs.InvalidArgument, "options: null"},
		"null in a list":    {b64(pull(`"options":["ro",null]`)), errdefs.InvalidArgument, "options[1]: null"},
		"null text":         {b64(pull(`"fs_type":null`)), errdefs.InvalidArgument, "fs_type: null"},
		"null annotation":   {b64(`{"volume_type":"image_guest_pull","source":"a","image_pull":{"metadata":{"k":null}}}`), errdefs.InvalidArgument, `image_pull.metadata: "k" is null`},
		"nested, twice":     {b64(`{"volume_type":"image_guest_pull","source":"a","image_pull":{"metadata":{},"metadata":{}}}`), errdefs.InvalidArgument, "image_pull.metadata: twice"},
		"a list":            {b64(`[]`), errdefs.InvalidArgument, "array"},
		"null":              {b64(`null`), errdefs.InvalidArgument, "volume_type"},
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

// What both shims accept: keys that neither knows, objects that are null, a repeated key of
// the metadata (the last stands).
func TestLenient(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	const sent = `{"volume_type":"image_guest_pull","source":"a","x":1,"x":2,"dm_verity":null,"image_pull":{"metadata":{"k":"1","k":"2"},"y":null}}`
	v, found, err := katavolume.FromOptions([]string{katavolume.OptionName + "=" + base64.StdEncoding.EncodeToString([]byte(sent))})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found).To(BeTrue())
	g.Expect(v).To(Equal(katavolume.Volume{
		VolumeType: "image_guest_pull", Source: "a", ImagePull: &katavolume.Metadata{Metadata: map[string]string{"k": "2"}},
	}))
}

func TestTwoVolumes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	option, err := guestPull().Option()
	g.Expect(err).NotTo(HaveOccurred())
	_, found, err := katavolume.FromOptions([]string{option, option})
	g.Expect(found).To(BeFalse())
	g.Expect(err).To(MatchError(ContainSubstring("more than one")))
}

func TestTooLargeIsNotEncoded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := katavolume.GuestPull("a", map[string]string{"k": strings.Repeat("x", 2<<20)}).Option()
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge))
}

func TestGuestPullCopies(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	annotations := map[string]string{"k": "1"}
	v := katavolume.GuestPull("a", annotations)
	annotations["k"] = "2"
	g.Expect(v.ImagePull.Metadata).To(Equal(map[string]string{"k": "1"}))
	option, err := katavolume.GuestPull("a", nil).Option()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(katavolume.FromOptions([]string{option})).Error().NotTo(HaveOccurred())
}

func FuzzFromOptions(f *testing.F) {
	for _, tc := range valid() {
		f.Add([]byte(tc.json))
	}
	f.Add([]byte(`{"volume_type":"image_guest_pull","Source":"a","source":"b","image_pull":{"metadata":{"k":null}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, found, err := katavolume.FromOptions([]string{katavolume.OptionName + "=" + base64.StdEncoding.EncodeToString(data)})
		if !found || err != nil {
			return
		}
		option, err := v.Option() // what is accepted can be passed on
		if errdefs.KindOf(err) == errdefs.TooLarge {
			return // escapes make it longer
		}
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := katavolume.FromOptions([]string{option})
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Options) == 0 {
			v.Options = nil // sent as none
		}
		if !reflect.DeepEqual(again, v) {
			t.Fatalf("%+v came back as %+v", v, again)
		}
	})
}
