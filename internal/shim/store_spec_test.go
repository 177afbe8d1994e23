package shim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestImageMounts(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spec := testSpec()
	g.Expect(imageMounts(spec)).To(BeEmpty())
	ref := "r.example/data@sha256:" + digestHex
	spec.Annotations[annotations.ImageMounts] = fmt.Sprintf(`[{"reference":%q,"destination":"/data"},{"reference":%q,"destination":"/d/e/","subPath":"a/b"}]`, ref, ref)
	g.Expect(imageMounts(spec)).To(Equal([]bundlegen.ImageMount{
		{Reference: ref, Destination: "/data"}, {Reference: ref, Destination: "/d/e/", SubPath: "a/b"},
	}))
}

func TestImageMountsRefuse(t *testing.T) {
	t.Parallel()
	one := func(destination, subPath string) string {
		return fmt.Sprintf(`[{"reference":"r.example/d@sha256:%s","destination":%q,"subPath":%q}]`, digestHex, destination, subPath)
	}
	for name, tc := range map[string]struct {
		text string
		kind errdefs.Kind
	}{
		"no JSON":       {"x", errdefs.InvalidArgument},
		"more":          {"[] []", errdefs.InvalidArgument},
		"unknown field": {`[{"writable":true}]`, errdefs.InvalidArgument},
		"a tag":         {`[{"reference":"r.example/d:1","destination":"/d"}]`, errdefs.InvalidArgument},
		"no reference":  {`[{"destination":"/d"}]`, errdefs.InvalidArgument},
		"relative":      {one("d", ""), errdefs.InvalidArgument},
		"nowhere":       {one("", ""), errdefs.InvalidArgument},
		"everywhere":    {one("/a/..", ""), errdefs.InvalidArgument},
		"out":           {one("/d", "../x"), errdefs.InvalidArgument},
		"out and in":    {one("/d", "a/../../x"), errdefs.InvalidArgument},
		"absolute":      {one("/d", "/x"), errdefs.InvalidArgument},
		"a zero byte":   {`[{"reference":"r.example/d@sha256:` + digestHex + `","destination":"/d","subPath":"a\u0000b"}]`, errdefs.InvalidArgument},
		"many":          {"[" + strings.Repeat(`{},`, 128) + "{}]", errdefs.TooLarge},
		"large":         {`["` + strings.Repeat("x", 1<<20) + `"]`, errdefs.TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			spec := testSpec()
			spec.Annotations[annotations.ImageMounts] = tc.text
			mounts, err := imageMounts(spec)
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(err).To(HaveOccurred())
			g.Expect(mounts).To(BeNil())
		})
	}
}

// A mount that is made later would hide what lies in its place.
func TestInsertMount(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		mounts []string
		at     string
		want   []string
	}{
		{nil, "/a", []string{"/a"}},
		{[]string{"/proc", "/data/in"}, "/data", []string{"/proc", "/data", "/data/in"}},
		{[]string{"/data", "/proc"}, "/data/in", []string{"/data", "/proc", "/data/in"}},
		{[]string{"/data", "/proc"}, "/data", []string{"/data", "/proc", "/data"}},
		{[]string{"/database", "/data/"}, "/data", []string{"/database", "/data/", "/data"}},
	} {
		var mounts []rspec.Mount
		for _, d := range tc.mounts {
			mounts = append(mounts, rspec.Mount{Destination: d})
		}
		var got []string
		for _, m := range insertMount(mounts, rspec.Mount{Destination: tc.at}) {
			got = append(got, m.Destination)
		}
		NewWithT(t).Expect(got).To(Equal(tc.want))
	}
}

// mountPuller has one image and fails for the others.
type mountPuller struct {
	mu     sync.Mutex
	good   string
	pulled []string
}

func (p *mountPuller) Run(_ context.Context, req layers.Request) (layers.Image, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pulled = append(p.pulled, req.Pull.Reference)
	if req.Pull.Reference != p.good {
		return layers.Image{}, errdefs.New(errdefs.PolicyRefused, "pull "+req.Pull.Reference, nil)
	}
	return layers.Image{}, nil
}

// An image that cannot be had as a volume is the container's error, before anything is mounted.
func TestCreateFailsWithItsImageMounts(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	other := "r.example/data@sha256:" + strings.Repeat("b", 64)
	puller := &mountPuller{good: "r.example/app@sha256:" + digestHex}
	r := newServiceRig(t, puller)
	req := r.request(t, "c1", func(s *rspec.Spec) {
		s.Annotations[annotations.ImageRef] = puller.good
		s.Annotations[annotations.ImageMounts] = fmt.Sprintf(`[{"reference":%q,"destination":"/data"}]`, other)
	})
	_, err := r.Create(inNamespace(t), req)
	g.Expect(status.Code(err)).To(Equal(errdefs.PolicyRefused.Code()), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring(other)))
	g.Expect(puller.pulled).To(Equal([]string{puller.good, other}))
	g.Expect(r.pod.List()).To(BeEmpty())
	g.Expect(r.store.container("c1")).NotTo(BeADirectory())
	g.Expect(r.inner.created).To(BeNil())
}
