package bundlegen

import (
	"fmt"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestEffectiveArgs(t *testing.T) {
	t.Parallel()
	type list = []string
	for _, tc := range []struct {
		entrypoint, cmd, command, args list
		want                           list
	}{
		{list{"e"}, nil, nil, nil, list{"e"}},
		{nil, list{"c", "1"}, nil, nil, list{"c", "1"}},
		{list{"e", "x"}, list{"c"}, nil, nil, list{"e", "x", "c"}},
		{list{"e"}, list{"c"}, nil, list{"a"}, list{"e", "a"}},
		{nil, list{"c"}, nil, list{"a"}, list{"a"}},
		{list{"e"}, list{"c"}, list{"k"}, nil, list{"k"}},
		{list{"e"}, list{"c"}, list{"k", "l"}, list{"a", "b"}, list{"k", "l", "a", "b"}},
		{nil, nil, list{"k"}, nil, list{"k"}},
		{nil, nil, nil, list{"a"}, list{"a"}},
		{list{"e"}, list{"c"}, list{}, list{}, list{"e", "c"}},
		{list{"e"}, nil, nil, list{"$(HOME)", ""}, list{"e", "$(HOME)", ""}},
	} {
		t.Run(fmt.Sprintf("%q%q%q%q", tc.entrypoint, tc.cmd, tc.command, tc.args), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			image := imgspec.Image{Config: imgspec.ImageConfig{Entrypoint: tc.entrypoint, Cmd: tc.cmd}}
			p, err := Effective(image, Request{Command: tc.command, Args: tc.args})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(p.Args).To(Equal(tc.want))
		})
	}
}

func TestEffectiveWithNothingToRun(t *testing.T) {
	t.Parallel()
	_, err := Effective(imgspec.Image{}, Request{})
	NewWithT(t).Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue())
}

func TestEffectiveEnv(t *testing.T) {
	t.Parallel()
	type list = []string
	for _, tc := range []struct {
		name           string
		image, request list
		want           list
	}{
		{"none", nil, nil, nil},
		{"image alone", list{"A=1", "B=2"}, nil, list{"A=1", "B=2"}},
		{"request first", list{"A=1"}, list{"B=2"}, list{"B=2", "A=1"}},
		{"request wins", list{"A=1", "B=2"}, list{"B=3"}, list{"B=3", "A=1"}},
		{"request wins with an empty value", list{"A=1"}, list{"A="}, list{"A="}},
		{"last of the request at the first place", nil, list{"A=1", "B=2", "A=3"}, list{"A=3", "B=2"}},
		{"last of the image alone", list{"A=1", "B=2", "A=3"}, nil, list{"A=3", "B=2"}},
		{"first of the image under a request", list{"A=1", "A=3"}, list{"B=2"}, list{"B=2", "A=1"}},
		{"value with equals signs", list{"A=b=c"}, nil, list{"A=b=c"}},
		{"no name, no variable", list{"=1", "A"}, list{"=2", "B=1"}, list{"B=1"}},
		{"$(VAR) is the kubelet's", list{"A=$(B)"}, list{"C=$(A)"}, list{"C=$(A)", "A=$(B)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			image := imgspec.Image{Config: imgspec.ImageConfig{Env: tc.image, Cmd: []string{"c"}}}
			p, err := Effective(image, Request{Env: tc.request})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(p.Env).To(Equal(tc.want))
		})
	}
}

func TestEffectiveRest(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	image := imgspec.Image{Config: imgspec.ImageConfig{Cmd: []string{"c"}}}
	p, err := Effective(image, Request{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p).To(Equal(Process{Args: []string{"c"}, Cwd: "/"}))

	image.Config.WorkingDir = "/srv"
	image.Config.StopSignal = "SIGQUIT"
	image.Config.Labels = map[string]string{"a": "b"}
	image.Config.Volumes = map[string]struct{}{"/z": {}, "data": {}, "/z/": {}, "/../../up": {}}
	p, err = Effective(image, Request{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p).To(Equal(Process{
		Args: []string{"c"}, Cwd: "/srv", StopSignal: "SIGQUIT",
		Labels: map[string]string{"a": "b"}, Volumes: []string{"/data", "/up", "/z"},
	}))

	p, err = Effective(image, Request{WorkingDir: "/tmp", StopSignal: "SIGUSR1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.Cwd).To(Equal("/tmp"))
	g.Expect(p.StopSignal).To(Equal("SIGUSR1"))
}

func TestEffectiveLeavesItsInputAlone(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	entrypoint := append(make([]string, 0, 8), "e")
	image := imgspec.Image{Config: imgspec.ImageConfig{Entrypoint: entrypoint, Cmd: []string{"c"}, Labels: map[string]string{"a": "b"}}}
	p, err := Effective(image, Request{Args: []string{"a"}})
	g.Expect(err).NotTo(HaveOccurred())
	p.Args[0] = "changed"
	p.Labels["a"] = "changed"
	g.Expect(image.Config.Entrypoint).To(Equal([]string{"e"}))
	g.Expect(entrypoint[:2][1]).To(BeEmpty())
	g.Expect(image.Config.Labels).To(HaveKeyWithValue("a", "b"))
}

func TestEffectiveBoundsVolumes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	image := imgspec.Image{Config: imgspec.ImageConfig{Cmd: []string{"c"}, Volumes: map[string]struct{}{}}}
	for i := range maxVolumes + 1 {
		image.Config.Volumes[fmt.Sprint("/", i)] = struct{}{}
	}
	_, err := Effective(image, Request{})
	g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue())

	image.Config.Volumes = map[string]struct{}{"/" + strings.Repeat("a", maxVolumePath): {}}
	_, err = Effective(image, Request{})
	g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue())
}
