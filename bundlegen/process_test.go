package bundlegen

import (
	"encoding/json"
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

// All that kubelet can send for all that an image can say: E and C are the image's
// entrypoint and command, K and A the request's command and args.
func TestEffectiveArgsEveryCombination(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	golden := map[string]string{
		"....": "", "E...": "e1 e2", ".C..": "c1 c2", "EC..": "e1 e2 c1 c2",
		"..K.": "k1 k2", "E.K.": "k1 k2", ".CK.": "k1 k2", "ECK.": "k1 k2",
		"...A": "a1 a2", "E..A": "e1 e2 a1 a2", ".C.A": "a1 a2", "EC.A": "e1 e2 a1 a2",
		"..KA": "k1 k2 a1 a2", "E.KA": "k1 k2 a1 a2", ".CKA": "k1 k2 a1 a2", "ECKA": "k1 k2 a1 a2",
	}
	for given, want := range golden {
		for _, absent := range [][]string{nil, {}} { // CRI cannot tell them apart
			list := func(i int, words ...string) []string {
				if given[i] == '.' {
					return absent
				}
				return words
			}
			image := imgspec.Image{Config: imgspec.ImageConfig{Entrypoint: list(0, "e1", "e2"), Cmd: list(1, "c1", "c2")}}
			p, err := Effective(image, Request{Command: list(2, "k1", "k2"), Args: list(3, "a1", "a2")})
			g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(Equal(want == ""), "%s: %v", given, err)
			g.Expect(strings.Join(p.Args, " ")).To(Equal(want), given)
		}
	}
}

func TestEffectiveRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		image imgspec.ImageConfig
		req   Request
		says  string
	}{
		"relative directory of the image":   {imgspec.ImageConfig{WorkingDir: "srv"}, Request{}, `"srv" is not an absolute path`},
		"relative directory of the request": {imgspec.ImageConfig{}, Request{WorkingDir: "./srv"}, `"./srv" is not an absolute path`},
		"NUL in the entrypoint":             {imgspec.ImageConfig{Entrypoint: []string{"a\x00"}}, Request{}, "NUL in the command"},
		"NUL in an argument":                {imgspec.ImageConfig{}, Request{Args: []string{"\x00"}}, "NUL in the command"},
		"NUL in a variable":                 {imgspec.ImageConfig{Env: []string{"A=\x00"}}, Request{}, "NUL in the env"},
		"NUL in the directory":              {imgspec.ImageConfig{WorkingDir: "/a\x00/../b"}, Request{}, "NUL in the working directory"},
		"argument that is not UTF-8":        {imgspec.ImageConfig{}, Request{Args: []string{"\xff"}}, "the command is not UTF-8"},
		"variable that is not UTF-8":        {imgspec.ImageConfig{}, Request{Env: []string{"A=\xff"}}, "the env is not UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			tc.image.Cmd = []string{"c"}
			p, err := Effective(imgspec.Image{Config: tc.image}, tc.req)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
			g.Expect(err).To(MatchError(ContainSubstring(tc.says)))
			g.Expect(p).To(BeZero())
		})
	}
}

// Docker's config has more than OCI's: a health check, a shell, triggers. They run nothing.
func TestEffectiveIgnoresDockersFields(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var image imgspec.Image
	g.Expect(json.Unmarshal([]byte(`{"os":"linux","architecture":"amd64","config":{
		"Cmd":["c"],"Healthcheck":{"Test":["CMD-SHELL","exit 1"],"Interval":1},"Shell":["/bin/bash"],"OnBuild":["RUN x"],
		"Domainname":"d","Hostname":"h","Tty":true,"ArgsEscaped":true}}`), &image)).To(Succeed())
	p, err := Effective(image, Request{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p).To(Equal(Process{Args: []string{"c"}, Cwd: "/"}))
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
	image.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}, "443": {}}
	image.Config.Volumes = map[string]struct{}{"/z": {}, "data": {}, "/z/": {}, "/../../up": {}}
	p, err = Effective(image, Request{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p).To(Equal(Process{
		Args: []string{"c"}, Cwd: "/srv", StopSignal: "SIGQUIT",
		Labels: map[string]string{"a": "b"}, Volumes: []string{"/data", "/up", "/z"},
		ExposedPorts: []string{"443", "53/udp", "80/tcp"},
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
