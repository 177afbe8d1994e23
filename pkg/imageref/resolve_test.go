package imageref

import (
	"fmt"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func manifest(c string) ManifestDigest {
	return must(ParseManifestDigest("sha256:" + strings.Repeat(c, 64)))
}

// pulledOn is a pull of ref at a minute; digest is what ref resolved to.
func pulledOn(ref string, digest ManifestDigest, minute int) PulledReference {
	return PulledReference{
		Reference: must(ParseReference(ref)), Digest: digest,
		PulledAt: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC),
	}
}

func record(m, config string, refs ...PulledReference) Record {
	return Record{
		StorageID: RecordID(manifest(m)), Manifest: manifest(m), References: refs,
		ConfigDigest: must(ParseConfigDigest("sha256:" + strings.Repeat(config, 64))),
		Image:        imgspec.Image{Config: imgspec.ImageConfig{Labels: map[string]string{"k": "v"}}},
		StoredBytes:  1234, Layers: 3, EncryptedLayers: 2, LayerBytes: 1 << 30,
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	index := manifest("9")
	one := record("1", "a", pulledOn("reg/app:1", index, 1))
	two := record("2", "a", pulledOn("reg/app:2", manifest("2"), 2), pulledOn("reg/other:1", manifest("2"), 3))
	three := record("3", "b")
	three.ConfigDigest = must(ParseConfigDigest("sha256:" + "aab" + strings.Repeat("b", 61)))
	records := []Record{one, two, three}
	for _, c := range []struct {
		text string
		want []Record
	}{
		{strings.Repeat("a", 64), []Record{two, one}},
		{"sha256:" + strings.Repeat("a", 64), []Record{two, one}},
		{"reg/app:1", []Record{one}},
		{"reg/app", nil}, // latest
		{"reg/app@" + index.String(), []Record{one}},
		{"reg/app@" + one.Manifest.String(), []Record{one}},
		{"reg/none@" + one.Manifest.String(), nil},
		{"reg/other:1", []Record{two}},
		{"reg/app:3", nil},
		{"aaa", []Record{two, one}},
		{"aab", []Record{three}},
		{"aa", nil},
	} {
		var candidates []Reference
		if ref, err := ParseReference(c.text); err == nil {
			candidates = append(candidates, ref)
		}
		got := Resolve(records, NewQuery(c.text, candidates))
		var ids, want []string
		for _, r := range got.Records {
			ids = append(ids, r.StorageID.String())
		}
		for _, r := range c.want {
			want = append(want, r.StorageID.String())
		}
		NewWithT(t).Expect(ids).To(Equal(want), c.text)
		NewWithT(t).Expect(got.By.IsZero()).To(Equal(len(want) == 0 || !strings.Contains(c.text, "/")), c.text)
	}
	four := record("4", "d")
	four.ConfigDigest = must(ParseConfigDigest("sha256:" + "aab" + strings.Repeat("c", 61)))
	NewWithT(t).Expect(Resolve([]Record{three, four}, NewQuery("aab", nil)).Records).To(BeEmpty(), "ambiguous")
	own := NewQuery(two.StorageID.String(), nil)
	NewWithT(t).Expect(Resolve(records, own).Records).To(BeEmpty(), "no image has a storage ID")
	NewWithT(t).Expect(ResolveStored(records, own).Records).To(Equal([]Record{two}))
}

func TestChoose(t *testing.T) {
	t.Parallel()
	plain := record("1", "a", pulledOn("reg/plain:1", manifest("1"), 5))
	secret := record("2", "a", pulledOn("reg/secret:1", manifest("2"), 1), pulledOn("reg/copy:1", manifest("2"), 2))
	for ask, want := range map[string]string{
		"reg/plain:1":                          "docker.io/reg/plain:1",
		"reg/secret:1":                         "docker.io/reg/secret:1",
		"reg/secret@" + manifest("2").String(): "docker.io/reg/secret:1",
		"reg/secret:other":                     "docker.io/reg/secret:1",
		"reg/copy:other":                       "docker.io/reg/copy:1",
		"unknown/app:1":                        "docker.io/reg/plain:1", // the newest
		"reg/secret@" + manifest("7").String(): "docker.io/reg/secret:1",
	} {
		_, pulled := Choose([]Record{plain, secret}, []Reference{must(ParseReference(ask))})
		NewWithT(t).Expect(pulled.Reference.String()).To(Equal(want), ask)
	}
}

// BenchmarkResolve finds one of 1,000 records, as every ImageStatus does.
func BenchmarkResolve(b *testing.B) {
	records := make([]Record, 0, 1000)
	for i := range 1000 {
		records = append(records, record("1", "a", pulledOn(fmt.Sprintf("registry.test/team/app:v%d", i), manifest("1"), i%60)))
	}
	ref := must(ParseReference("registry.test/team/app:v777"))
	q := NewQuery(ref.String(), []Reference{ref})
	for b.Loop() {
		if len(Resolve(records, q).Records) != 1 {
			b.Fatal("not found")
		}
	}
}
