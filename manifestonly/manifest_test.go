package manifestonly

import (
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	cimanifest "github.com/containers/image/v5/manifest"
	"github.com/containers/image/v5/types"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func desc(mediaType, content string, size int64) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest.FromString(content), size)
}

func TestParseDocument(t *testing.T) {
	t.Parallel()
	config := desc(imgspec.MediaTypeImageConfig, "config", 10)
	for name, c := range map[string]struct {
		body string
		ok   bool
	}{
		"OCI":                      {`{"schemaVersion":2,"mediaType":"` + imgspec.MediaTypeImageManifest + `","config":` + config + `,"layers":[]}`, true},
		"OCI without media type":   {`{"schemaVersion":2,"config":` + config + `,"layers":[]}`, true},
		"docker":                   {`{"schemaVersion":2,"mediaType":"` + dockerManifest + `","config":` + config + `,"layers":[]}`, true},
		"index":                    {`{"schemaVersion":2,"mediaType":"` + imgspec.MediaTypeImageIndex + `","manifests":[]}`, true},
		"index without media type": {`{"schemaVersion":2,"manifests":[]}`, true},
		"list":                     {`{"schemaVersion":2,"mediaType":"` + dockerList + `","manifests":[]}`, true},
		"nothing":                  {``, false},
		"empty":                    {`{}`, false},
		"an array":                 {`[]`, false},
		"two documents":            {`{"schemaVersion":2,"manifests":[]}{}`, false},
		"neither":                  {`{"schemaVersion":2}`, false},
		"schema 1":                 {`{"schemaVersion":1,"fsLayers":[{}]}`, false},
		"schema 1 under schema 2":  {`{"schemaVersion":2,"config":` + config + `,"fsLayers":[{}]}`, false},
		"schema 3":                 {`{"schemaVersion":3,"config":` + config + `}`, false},
		"both":                     {`{"schemaVersion":2,"config":` + config + `,"manifests":[]}`, false},
		"both, by layers":          {`{"schemaVersion":2,"mediaType":"` + imgspec.MediaTypeImageIndex + `","layers":[],"manifests":[]}`, false},
		"index that is an image":   {`{"schemaVersion":2,"mediaType":"` + imgspec.MediaTypeImageIndex + `","config":` + config + `}`, false},
		"image that is an index":   {`{"schemaVersion":2,"mediaType":"` + imgspec.MediaTypeImageManifest + `","manifests":[]}`, false},
		"no config":                {`{"schemaVersion":2,"mediaType":"` + imgspec.MediaTypeImageManifest + `","layers":[]}`, false},
		"another type":             {`{"schemaVersion":2,"mediaType":"application/json","config":` + config + `}`, false},
		"numbers as strings":       {`{"schemaVersion":"2","config":` + config + `}`, false},
	} {
		_, err := parseDocument("pull x", []byte(c.body))
		g := NewWithT(t)
		if c.ok {
			g.Expect(err).NotTo(HaveOccurred(), name)
		} else {
			g.Expect(errdefs.Is(err, errdefs.NotAnImage)).To(BeTrue(), "%s: %v", name, err)
		}
	}
}

func manifestOf(edit func(*document)) document {
	d := document{
		SchemaVersion: 2,
		Config:        &imgspec.Descriptor{MediaType: imgspec.MediaTypeImageConfig, Digest: digest.FromString("config"), Size: 10},
		Layers: []imgspec.Descriptor{
			{MediaType: imgspec.MediaTypeImageLayerGzip, Digest: digest.FromString("1"), Size: 100},
			{MediaType: imgspec.MediaTypeImageLayerGzip + encryptedSuffix, Digest: digest.FromString("2"), Size: 1000},
		},
	}
	if edit != nil {
		edit(&d)
	}
	return d
}

func TestImageFacts(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, err := manifestOf(nil).image("pull x")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.layers).To(Equal(2))
	g.Expect(f.encrypted).To(Equal(1))
	g.Expect(f.layerBytes).To(Equal(int64(1100)))
	g.Expect(f.config.Size()).To(Equal(int64(10)))
	g.Expect(f.config.Digest().Digest()).To(Equal(digest.FromString("config")))
}

func TestImageRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*document)
		want errdefs.Kind
		says string
	}{
		"artifact by config":   {func(d *document) { d.Config.MediaType = "application/vnd.example+json" }, errdefs.NotAnImage, "application/vnd.example+json"},
		"artifact by type":     {func(d *document) { d.ArtifactType = "application/spdx+json" }, errdefs.NotAnImage, "application/spdx+json"},
		"empty config":         {func(d *document) { d.Config.MediaType = imgspec.MediaTypeEmptyJSON }, errdefs.NotAnImage, "artifact"},
		"config too large":     {func(d *document) { d.Config.Size = MaxConfigSize + 1 }, errdefs.TooLarge, "limit is 4194304"},
		"config of 8 EiB":      {func(d *document) { d.Config.Size = math.MaxInt64 }, errdefs.TooLarge, "limit"},
		"config size negative": {func(d *document) { d.Config.Size = -1 }, errdefs.NotAnImage, "-1"},
		"config not sha256":    {func(d *document) { d.Config.Digest = digest.SHA512.FromString("c") }, errdefs.NotAnImage, "sha256"},
		"config no digest":     {func(d *document) { d.Config.Digest = "../../etc/passwd" }, errdefs.NotAnImage, "digest"},
		"config is a layer":    {func(d *document) { d.Layers[1].Digest = d.Config.Digest }, errdefs.NotAnImage, "same blob"},
		"too many layers":      {func(d *document) { d.Layers = make([]imgspec.Descriptor, MaxLayers+1) }, errdefs.TooLarge, "501 layers"},
		"layer size negative":  {func(d *document) { d.Layers[0].Size = -5 }, errdefs.NotAnImage, "layer 0"},
		"layer sizes overflow": {func(d *document) { d.Layers[1].Size = math.MaxInt64 }, errdefs.TooLarge, "layer 1"},
		"layer no digest":      {func(d *document) { d.Layers[0].Digest = "" }, errdefs.NotAnImage, "layer 0"},
	} {
		g := NewWithT(t)
		_, err := manifestOf(c.edit).image("pull registry.test/app:v1")
		g.Expect(errdefs.KindOf(err)).To(Equal(c.want), "%s: %v", name, err)
		g.Expect(err).To(MatchError(And(ContainSubstring(c.says), ContainSubstring("registry.test/app:v1"))), name)
	}
}

func TestInstanceRefused(t *testing.T) {
	t.Parallel()
	entry := imgspec.Descriptor{Digest: digest.FromString("m"), Size: 10, Platform: &imgspec.Platform{OS: "linux", Architecture: "amd64"}}
	p := imgspec.Platform{OS: "linux", Architecture: "amd64"}
	for name, c := range map[string]struct {
		edit func(*imgspec.Descriptor)
		n    int
		want errdefs.Kind
	}{
		"none":          {nil, 0, errdefs.NoPlatform},
		"not for us":    {func(d *imgspec.Descriptor) { d.Platform = &imgspec.Platform{OS: "plan9", Architecture: "mips"} }, 1, errdefs.NoPlatform},
		"too large":     {func(d *imgspec.Descriptor) { d.Size = MaxManifestSize + 1 }, 1, errdefs.TooLarge},
		"no digest":     {func(d *imgspec.Descriptor) { d.Digest = "" }, 1, errdefs.NotAnImage},
		"negative size": {func(d *imgspec.Descriptor) { d.Size = -1 }, 1, errdefs.NotAnImage},
	} {
		e := entry
		if c.edit != nil {
			c.edit(&e)
		}
		doc := document{}
		for range c.n {
			doc.Manifests = append(doc.Manifests, e)
		}
		_, err := doc.instance("pull x", p)
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(c.want), "%s: %v", name, err)
	}
}

// TestChooseAsContainersImage compares the choice with that of the library which
// CRI-O uses, for every platform against many indexes.
func TestChooseAsContainersImage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	all := make([]*imgspec.Platform, 1, 32) // the first: none
	for _, arch := range []string{"amd64", "arm", "arm64", "s390x"} {
		for _, variant := range []string{"", "v5", "v6", "v7", "v8", "v9"} {
			all = append(all, &imgspec.Platform{OS: "linux", Architecture: arch, Variant: variant})
		}
	}
	all = append(all, &imgspec.Platform{OS: "windows", Architecture: "amd64"}, &imgspec.Platform{OS: "unknown", Architecture: "unknown"})
	compared := 0
	for seed := range 300 {
		n := 1 + seed%6
		entries := make([]imgspec.Descriptor, 0, n)
		for i := range n {
			d := imgspec.Descriptor{
				MediaType: []string{imgspec.MediaTypeImageManifest, imgspec.MediaTypeImageIndex, "application/unheard-of", ""}[(seed+i)%4],
				Digest:    digest.FromString(fmt.Sprint(seed, i)),
				Platform:  all[(seed*7+i*(seed%5+3))%len(all)],
			}
			if (seed+i)%3 == 0 {
				d.Annotations = map[string]string{zstdAnnotation: "true"}
			}
			entries = append(entries, d)
		}
		index := cimanifest.OCI1IndexFromComponents(entries, nil)
		for _, p := range all {
			if p == nil {
				continue
			}
			want, err := index.ChooseInstance(&types.SystemContext{OSChoice: p.OS, ArchitectureChoice: p.Architecture, VariantChoice: p.Variant})
			got, ok := choose(entries, *p)
			g.Expect(ok).To(Equal(err == nil), "%v of %v", p, entries)
			g.Expect(got.Digest).To(Equal(want), "%v of %v", p, entries)
			compared++
		}
	}
	g.Expect(compared).To(BeNumerically(">", 5000))
}

func TestZeroPlatformIsTheNodes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	entries := make([]imgspec.Descriptor, 0, 2)
	for _, arch := range []string{"amd64", "arm64"} {
		entries = append(entries, imgspec.Descriptor{Digest: digest.FromString(arch), Platform: &imgspec.Platform{OS: "linux", Architecture: arch}})
	}
	index := cimanifest.OCI1IndexFromComponents(entries, nil)
	want, err := index.ChooseInstance(nil)
	g.Expect(err).NotTo(HaveOccurred())
	got, ok := choose(entries, imgspec.Platform{})
	g.Expect(ok).To(BeTrue())
	g.Expect(got.Digest).To(Equal(want))
}

func FuzzManifest(f *testing.F) {
	m, err := json.Marshal(manifestOf(nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("a", 64) + `","size":3}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		doc, err := parseDocument("pull x", body)
		if err != nil {
			return
		}
		if doc.isIndex() {
			if d, err := doc.instance("pull x", imgspec.Platform{OS: "linux", Architecture: "amd64"}); err == nil && (d.Size < 0 || d.Size > MaxManifestSize) {
				t.Fatalf("accepted an entry of %d bytes", d.Size)
			}
			return
		}
		f, err := doc.image("pull x")
		if err != nil {
			return
		}
		if f.config.Size() < 0 || f.config.Size() > MaxConfigSize || f.layerBytes < 0 || f.layers > MaxLayers {
			t.Fatalf("accepted %+v", f)
		}
		for _, l := range doc.Layers {
			if l.Digest == f.config.Digest().Digest() {
				t.Fatal("the config names a layer")
			}
		}
	})
}

// A list in a manifest is counted while it is read: 4 MiB of empty descriptors would
// be 170 MiB of memory, and several times that until the list has grown to it.
//
//nolint:paralleltest // measures what the process allocates
func TestListsAreBoundedWhileRead(t *testing.T) {
	for _, field := range []string{"manifests", "layers"} {
		g := NewWithT(t)
		entries := strings.Repeat(`{},`, MaxManifestSize/3-100) + `{}`
		body := []byte(`{"schemaVersion":2,"` + field + `":[` + entries + `]}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := parseDocument("pull x", body)
		runtime.ReadMemStats(&after)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%s: %v", field, err)
		g.Expect(after.TotalAlloc-before.TotalAlloc).To(BeNumerically("<", MaxManifestSize), field)
	}
}

func TestListsAsEncodingJSONReadsThem(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for text, want := range map[string]descriptors{
		`null`: nil, `[]`: {}, `[{"size":1},{}]`: {{Size: 1}, {}},
		`[` + strings.Repeat(`{},`, MaxIndexEntries-1) + `{}]`: make(descriptors, MaxIndexEntries),
	} {
		var got descriptors
		g.Expect(json.Unmarshal([]byte(text), &got)).To(Succeed())
		g.Expect(got).To(Equal(want))
	}
	for _, bad := range []string{`{}`, `"x"`, `1`, `[1]`} {
		g.Expect(json.Unmarshal([]byte(bad), new(descriptors))).NotTo(Succeed(), bad)
	}
}

//nolint:paralleltest // measures what the process allocates
func TestHistoryTakesNoMemory(t *testing.T) {
	g := NewWithT(t)
	config := []byte(`{"os":"linux","history":[` + strings.Repeat(`{},`, MaxConfigSize/3-100) + `{}],"config":{"User":"web"}}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	parsed, err := ParseConfig(config)
	runtime.ReadMemStats(&after)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(parsed).To(Equal(imgspec.Image{Platform: imgspec.Platform{OS: "linux"}, Config: imgspec.ImageConfig{User: "web"}}))
	g.Expect(after.TotalAlloc - before.TotalAlloc).To(BeNumerically("<", MaxConfigSize))
}
