package manifestonly_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// wrap puts an index with this one entry over what s serves by the name.
func wrap(t *testing.T, s *source, name string, edit func(*imgspec.Index)) manifestonly.Blob {
	t.Helper()
	inner := s.tags[name]
	index := imgspec.Index{MediaType: imgspec.MediaTypeImageIndex, Manifests: []imgspec.Descriptor{{
		MediaType: imgspec.MediaTypeImageIndex, Digest: digest.FromBytes(inner), Size: int64(len(inner)),
		Platform: &imgspec.Platform{OS: "linux", Architecture: "amd64"},
	}}}
	index.SchemaVersion = 2
	if edit != nil {
		edit(&index)
	}
	body, err := json.Marshal(index)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	s.blobs[digest.FromBytes(inner).String()] = inner
	s.tags[name] = body
	return manifestonly.Blob{Digest: storetest.Digest(t, digest.FromBytes(body).String()), Bytes: body}
}

// nested serves an image below that many indexes and returns them, outermost first.
func nested(t *testing.T, depth int, edit func(*imgspec.Index)) (*source, manifestonly.Image) {
	t.Helper()
	img := storetest.Make(t, storetest.Spec{Reference: name, Layers: 1})
	s := serving(img)
	for range depth {
		img.Indexes = append([]manifestonly.Blob{wrap(t, s, name, edit)}, img.Indexes...)
	}
	return s, img
}

func fetch(t *testing.T, req manifestonly.Request, src manifestonly.Source, have manifestonly.Holder) (manifestonly.Image, error) {
	t.Helper()
	req.Platform = amd64
	img, _, err := manifestonly.Fetch(t.Context(), req, src, have)
	return img, err
}

func TestNestedIndexes(t *testing.T) {
	t.Parallel()
	for depth := range manifestonly.MaxIndexDepth + 1 {
		g := NewWithT(t)
		s, want := nested(t, depth, nil)
		got, err := fetch(t, manifestonly.Request{Name: name}, s, nil)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(got.Indexes).To(Equal(want.Indexes), "all of them, outermost first")
		g.Expect(got.Manifest).To(Equal(want.Manifest))
		top := want.Manifest.Digest
		if depth > 0 {
			top = want.Indexes[0].Digest
		}
		g.Expect(got.Pulled.Digest).To(Equal(top), "the reference stands for the outermost")
		record, err := manifestonly.Commit(t.Context(), got, &storetest.Memory{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(record.Indexes).To(HaveLen(depth))
		g.Expect(record.Platform).To(Equal("linux/amd64"))
	}
	s, _ := nested(t, manifestonly.MaxIndexDepth+1, nil)
	_, err := fetch(t, manifestonly.Request{Name: name}, s, nil)
	g := NewWithT(t)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotAnImage), "%v", err)
	g.Expect(s.asked).To(HaveLen(manifestonly.MaxIndexDepth+1), "the manifest behind is not asked for")
}

func TestIndexesAreBoundedTogether(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	// Each is within its own limit, and of both together the outer one is not.
	s, _ := nested(t, 3, func(i *imgspec.Index) {
		i.Annotations = map[string]string{"padding": strings.Repeat(" ", manifestonly.MaxIndexBytes/3+1)}
	})
	_, err := fetch(t, manifestonly.Request{Name: name}, s, nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring(fmt.Sprint(manifestonly.MaxIndexBytes))))
}

// What an index says of the type of an entry is a hint, as it is for
// containers/image: the manifest itself says what it is.
func TestEntryOfUnknownType(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	odd := func(i *imgspec.Index) { i.Manifests[0].MediaType = "application/vnd.example.unheard-of+json" }
	s, want := nested(t, 1, odd)
	got, err := fetch(t, manifestonly.Request{Name: name}, s, nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.Manifest).To(Equal(want.Manifest))

	s = serving(storetest.Make(t, storetest.Spec{Reference: name}))
	s.tags[name] = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.example.unheard-of+json"}`)
	wrap(t, s, name, odd)
	_, err = fetch(t, manifestonly.Request{Name: name}, s, nil)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotAnImage), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("unheard-of")))
}

func TestHandlerLimits(t *testing.T) {
	t.Parallel()
	for title, c := range map[string]struct {
		limits manifestonly.Limits
		says   string // "" when it is admitted
	}{
		"none":      {},
		"just":      {limits: manifestonly.Limits{MaxLayers: 3, MaxImageBytes: 3000}},
		"layers":    {manifestonly.Limits{MaxLayers: 2}, "the image has 3 layers; the handler allows 2"},
		"bytes":     {manifestonly.Limits{MaxImageBytes: 2999}, "the image has 3 layers of 3000 bytes in all; the handler allows 2999"},
		"hard ones": {limits: manifestonly.Limits{MaxLayers: manifestonly.MaxLayers * 2}},
	} {
		g := NewWithT(t)
		s := serving(storetest.Make(t, storetest.Spec{Reference: name, Layers: 3}))
		s.names = map[string][]string{"app": {name, "other.test/app:v1"}}
		_, err := fetch(t, manifestonly.Request{Name: "app", Limits: c.limits}, s, nil)
		if c.says == "" {
			g.Expect(err).NotTo(HaveOccurred(), title)
			continue
		}
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), title)
		g.Expect(err).To(MatchError(ContainSubstring(c.says)), title)
		g.Expect(s.asked).To(Equal([]string{"manifest "}), "nothing more is asked of the registry")
		g.Expect(s.opened).To(Equal([]string{name}), "and no other registry")
	}
}

// holder is what a store has, by repository and digest.
type holder map[string][]byte

func (h holder) Blob(_ context.Context, repository string, d digest.Digest) ([]byte, error) {
	if b, ok := h[repository+"@"+d.String()]; ok {
		return b, nil
	}
	return nil, errdefs.New(errdefs.NotFound, "read "+d.String(), nil)
}

func (h holder) put(repository string, img manifestonly.Image) {
	h[repository+"@"+img.ConfigDigest.String()] = img.Config
	for _, b := range append([]manifestonly.Blob{img.Manifest}, img.Indexes...) {
		h[repository+"@"+b.Digest.String()] = b.Bytes
	}
}

// warm is a store that holds blobs.
type warm struct {
	*storetest.Memory
	have holder
}

func (w warm) Blob(ctx context.Context, repository string, d digest.Digest) ([]byte, error) {
	return w.have.Blob(ctx, repository, d)
}

func TestWarmFetch(t *testing.T) {
	t.Parallel()
	img := storetest.Make(t, storetest.Spec{Reference: name, Index: "i", Layers: 1})
	instance, config := "manifest "+img.Manifest.Digest.String(), "config "+img.ConfigDigest.String()
	verify := "verify " + img.Manifest.Digest.String()
	elsewhere, here, broken := holder{}, holder{}, holder{}
	elsewhere.put("registry.test/other", img)
	here.put("registry.test/app", img)
	broken.put("registry.test/app", manifestonly.Image{
		ConfigDigest: img.ConfigDigest, Config: []byte("{}"),
		Manifest: manifestonly.Blob{Digest: img.Manifest.Digest, Bytes: []byte("{}")},
	})
	for title, c := range map[string]struct {
		have holder
		want []string
	}{
		"held":                     {here, []string{"manifest ", "prime " + img.Manifest.Digest.String(), verify}},
		"of another repository":    {elsewhere, []string{"manifest ", instance, verify, config}},
		"damaged":                  {broken, []string{"manifest ", instance, verify, config}},
		"nothing":                  {holder{}, []string{"manifest ", instance, verify, config}},
		"no holder that is no nil": {nil, []string{"manifest ", instance, verify, config}},
	} {
		g := NewWithT(t)
		s := serving(img)
		got, stats, err := manifestonly.Fetch(t.Context(), manifestonly.Request{Name: name, Platform: amd64}, s, c.have)
		g.Expect(err).NotTo(HaveOccurred(), title)
		g.Expect(s.asked).To(Equal(c.want), title)
		g.Expect(got.Config).To(Equal(img.Config))
		bytes := len(img.Indexes[0].Bytes)
		if len(c.want) == 4 {
			bytes += len(img.Manifest.Bytes) + len(img.Config)
		}
		g.Expect(stats.Bytes).To(Equal(int64(bytes)), title)
	}
}

// The registry decides at every pull: what the store holds opens nothing.
func TestWarmFetchStillAsks(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	img := storetest.Make(t, storetest.Spec{Reference: name})
	have := holder{}
	have.put("registry.test/app", img)
	s := serving(img)
	delete(s.tags, name)
	_, err := fetch(t, manifestonly.Request{Name: name}, s, have)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)

	s = serving(img)
	s.verify = errdefs.New(errdefs.PolicyRefused, "check", nil)
	_, err = fetch(t, manifestonly.Request{Name: name}, s, have)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
}

// Pull finds out by itself whether the store holds blobs.
func TestPullUsesTheStore(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	img := storetest.Make(t, storetest.Spec{Reference: name})
	s := serving(img)
	have := holder{}
	have.put("registry.test/app", img)
	store := warm{&storetest.Memory{}, have}
	_, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: name}, s, store)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.asked).To(Equal([]string{"manifest ", "verify "}))
}

// Every HTTP request is counted, also those of a pull that fails.
func TestStatsCountRequests(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	s := serving(storetest.Make(t, storetest.Spec{Reference: name}))
	s.names = map[string][]string{"app": {"gone.test/app:v1", name}}
	s.contact = func(ctx context.Context) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		g.Expect(err).NotTo(HaveOccurred())
		res, err := server.Client().Do(req)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(res.Body.Close()).To(Succeed())
	}
	result, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: "app"}, s, &storetest.Memory{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Stats.Requests).To(Equal(2), "one registry without it, one with")

	result, err = manifestonly.Pull(t.Context(), manifestonly.Request{Name: "gone.test/app:v1"}, s, &storetest.Memory{})
	g.Expect(err).To(HaveOccurred())
	g.Expect(result.Stats.Requests).To(Equal(1))
}

// started is a source with something to prepare.
type started struct {
	*source
	ends int
	err  error
}

func (s *started) Start(_ context.Context, req manifestonly.Request) (manifestonly.Source, func(), error) {
	s.opened = append(s.opened, "start "+req.Namespace)
	return s.source, func() { s.ends++ }, s.err
}

func TestSourceIsStartedOncePerPull(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := &started{source: serving(storetest.Make(t, storetest.Spec{Reference: name}))}
	s.names = map[string][]string{"app": {"gone.test/app:v1", name}}
	_, err := fetch(t, manifestonly.Request{Name: "app", Namespace: "ns"}, s, nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.opened).To(Equal([]string{"start ns", "gone.test/app:v1", name}))
	g.Expect(s.ends).To(Equal(1))

	_, err = fetch(t, manifestonly.Request{Name: "gone.test/app:v1"}, s, nil)
	g.Expect(err).To(HaveOccurred())
	g.Expect(s.ends).To(Equal(2), "ended when it fails, too")

	s.err = errdefs.New(errdefs.Internal, "start", nil)
	_, err = fetch(t, manifestonly.Request{Name: name}, s, nil)
	g.Expect(err).To(MatchError(s.err))
}

func TestImageSurvivesJSON(t *testing.T) {
	t.Parallel()
	for _, spec := range []storetest.Spec{
		{Reference: name},
		{Reference: name, Index: "i", Layers: 3, Encrypted: true, Signatures: [][]byte{[]byte("\x00\xff"), []byte("b")}, Config: imgspec.ImageConfig{
			User: "web", Entrypoint: []string{}, Cmd: []string{"a", "b"}, Env: []string{"A=<&>"}, Volumes: map[string]struct{}{"/v": {}},
		}},
	} {
		g := NewWithT(t)
		sent, err := fetch(t, manifestonly.Request{Name: name}, serving(storetest.Make(t, spec)), nil)
		g.Expect(err).NotTo(HaveOccurred())
		sent.Signatures = spec.Signatures
		data, err := json.Marshal(sent)
		g.Expect(err).NotTo(HaveOccurred())
		var got manifestonly.Image
		g.Expect(json.Unmarshal(data, &got)).To(Succeed())
		g.Expect(got).To(Equal(sent))
		g.Expect(got.Record()).To(Equal(sent.Record()))
	}
	g := NewWithT(t)
	data, err := json.Marshal(manifestonly.Stats{Requests: 3, Bytes: 1 << 40})
	g.Expect(err).NotTo(HaveOccurred())
	var stats manifestonly.Stats
	g.Expect(json.Unmarshal(data, &stats)).To(Succeed())
	g.Expect(stats).To(Equal(manifestonly.Stats{Requests: 3, Bytes: 1 << 40}))
	var img manifestonly.Image
	g.Expect(json.Unmarshal([]byte(`{"config":"bm90IEpTT04="}`), &img)).NotTo(Succeed())
	g.Expect(img).To(Equal(manifestonly.Image{}), "nothing half read")
}
