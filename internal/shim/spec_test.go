package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/katavolume"
)

const digestHex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func testSpec() *rspec.Spec {
	return &rspec.Spec{
		Version:     "1.0.0",
		Process:     &rspec.Process{Args: []string{"sh"}, Cwd: "/"},
		Root:        &rspec.Root{Path: "rootfs"},
		Linux:       &rspec.Linux{},
		Annotations: map[string]string{},
	}
}

func pullMount(t *testing.T, source string) *types.Mount {
	t.Helper()
	option, err := katavolume.Volume{
		VolumeType: katavolume.TypeImageGuestPull, Source: source, ImagePull: &katavolume.Metadata{Metadata: map[string]string{}},
	}.Option()
	if err != nil {
		t.Fatal(err)
	}
	return &types.Mount{Type: katavolume.MountType, Options: []string{option}}
}

func TestGuestPull(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	v, err := guestPull([]*types.Mount{{Type: "overlay", Options: []string{"ro"}}, pullMount(t, "a")})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(v.Source).To(Equal("a"))

	_, err = guestPull(nil)
	g.Expect(err).To(MatchError(ContainSubstring("runtime_pull_image")))
	_, err = guestPull([]*types.Mount{{Options: []string{katavolume.OptionName + "=e30="}}})
	g.Expect(err).To(MatchError(ContainSubstring("volume_type")))
	option, err := katavolume.Volume{VolumeType: katavolume.TypeImageRawBlock, Source: "/dev/x", FSType: katavolume.FSTypeCRIO}.Option()
	g.Expect(err).NotTo(HaveOccurred())
	_, err = guestPull([]*types.Mount{{Options: []string{option}}})
	g.Expect(errdefs.Is(err, errdefs.Unsupported)).To(BeTrue())
}

func TestPinned(t *testing.T) {
	t.Parallel()
	const digest = "@sha256:" + digestHex
	for name, tc := range map[string]struct{ annotation, source, want string }{
		"annotation wins":      {"r.example/a" + digest, "r.example/b" + digest, "r.example/a" + digest},
		"source":               {"", "r.example/b" + digest, "r.example/b" + digest},
		"the tag is dropped":   {"", "r.example/b:1" + digest, "r.example/b" + digest},
		"tag":                  {"", "r.example/b:1", ""},
		"annotation not below": {"r.example/a:1", "r.example/b" + digest, ""},
		"not a reference":      {"", "UPPER/case", ""},
		"nothing":              {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			spec := testSpec()
			if tc.annotation != "" {
				spec.Annotations[annotations.ImageRef] = tc.annotation
			}
			ref, err := pinned(spec, katavolume.Volume{Source: tc.source})
			if tc.want == "" {
				g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(ref.String()).To(Equal(tc.want))
		})
	}
}

func TestUserOf(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spec := testSpec()
	spec.Process.User = rspec.User{UID: 1000, GID: 5, AdditionalGids: []uint32{7}}
	g.Expect(userOf(spec)).To(Equal(bundlegen.User{Spec: "1000:5", SupplementalGroups: []uint32{7}, Policy: bundlegen.Strict}), "CRI-O's word")
	annotation, err := bundlegen.EncodeUser(bundlegen.User{Spec: "web"})
	g.Expect(err).NotTo(HaveOccurred())
	spec.Annotations[annotations.User] = annotation
	g.Expect(userOf(spec)).To(Equal(bundlegen.User{Spec: "web"}), "the front's word")
	for _, bad := range []string{"", "web", `{"user":"a:b:c"}`} {
		spec.Annotations[annotations.User] = bad
		_, err := userOf(spec)
		g.Expect(err).To(HaveOccurred(), "%q must not become root", bad)
	}
}

func TestVolumesOf(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spec := testSpec()
	config := map[string]struct{}{"/b": {}, "/a": {}}
	g.Expect(volumesOf(spec, config)).To(Equal([]string{"/a", "/b"}))
	spec.Annotations[annotations.ImageVolumes] = `["/c"]`
	g.Expect(volumesOf(spec, config)).To(Equal([]string{"/c"}))
	spec.Annotations[annotations.ImageVolumes] = `"/c"`
	_, err := volumesOf(spec, config)
	g.Expect(err).To(MatchError(ContainSubstring(annotations.ImageVolumes)))
}

func TestRefuseUnsupported(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spec := testSpec()
	spec.Mounts = []rspec.Mount{{Destination: "/v", Options: []string{"rbind", "rslave"}}}
	g.Expect(refuseUnsupported(spec)).To(Succeed())
	spec.Mounts[0].Options[1] = "rshared"
	g.Expect(refuseUnsupported(spec)).To(MatchError(ContainSubstring("/v")))
}

func TestLimitOOMScore(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	own, err := sandbox.OOMScore(os.Getpid())
	g.Expect(err).NotTo(HaveOccurred())
	may, err := hasCapability(capSysResource)
	g.Expect(err).NotTo(HaveOccurred())
	for _, want := range []int{own - 1, own, own + 1} {
		expect := want
		if !may {
			expect = max(want, own)
		}
		spec := testSpec()
		spec.Process.OOMScoreAdj = &want
		g.Expect(limitOOMScore(spec)).To(Succeed())
		g.Expect(*spec.Process.OOMScoreAdj).To(Equal(expect))
	}
	spec := testSpec()
	g.Expect(limitOOMScore(spec)).To(Succeed())
	g.Expect(spec.Process.OOMScoreAdj).To(BeNil())
}

func TestSpecFiles(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	bundle := t.TempDir()
	config := filepath.Join(bundle, configFile)
	const original = `{"ociVersion":"1.0.0","process":{"args":["sh"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"rootfs"},"linux":{}}`
	g.Expect(os.WriteFile(config, []byte(original), 0o600)).To(Succeed())
	spec, err := readSpec(bundle)
	g.Expect(err).NotTo(HaveOccurred())
	for _, root := range []string{"/one", "/two"} {
		spec.Root.Path = root
		g.Expect(writeSpec(bundle, spec)).To(Succeed())
		again, err := readSpec(bundle)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(again.Root.Path).To(Equal(root))
		g.Expect(os.ReadFile(filepath.Join(bundle, templateFile))).To(Equal([]byte(original)))
	}

	for name, content := range map[string]string{
		"no process": `{"root":{"path":"x"},"linux":{}}`, "no root": `{"process":{},"linux":{}}`, "no linux": `{"process":{},"root":{}}`,
		"not JSON": `{`, "too large": strings.Repeat(" ", maxSpec+1),
	} {
		g.Expect(os.WriteFile(config, []byte(content), 0o600)).To(Succeed())
		_, err := readSpec(bundle)
		g.Expect(err).To(HaveOccurred(), name)
	}
}

func TestGrouping(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		id, spec string
		want     grouping
	}{
		"sandbox":   {"s1", `{"annotations":{"io.kubernetes.cri-o.SandboxID":"s1","io.kubernetes.cri-o.ContainerType":"sandbox"}}`, grouping{"s1", true}},
		"container": {"c1", `{"annotations":{"io.kubernetes.cri-o.SandboxID":"s1","io.kubernetes.cri-o.ContainerType":"container"}}`, grouping{"s1", false}},
		"no CRI-O":  {"c1", `{"annotations":{"io.kubernetes.cri.sandbox-id":"s1"}}`, grouping{"c1", true}},
		"nothing":   {"c1", `{}`, grouping{"c1", true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			bundle := t.TempDir()
			_, err := readGrouping(bundle, tc.id)
			g.Expect(err).To(MatchError(ContainSubstring(tc.id)))
			g.Expect(os.WriteFile(filepath.Join(bundle, configFile), []byte(tc.spec), 0o600)).To(Succeed())
			g.Expect(readGrouping(bundle, tc.id)).To(Equal(tc.want))
		})
	}
}

// A pod's annotations reach the spec of its sandbox after CRI-O's own.
func TestSandboxOfAnotherPod(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := groupOf("s2", map[string]string{annotations.CRIOSandboxID: "s1", annotations.CRIOContainerType: annotations.ContainerTypeSandbox})
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
	g.Expect(err).To(MatchError(And(ContainSubstring("s1"), ContainSubstring("s2"))))
}

func TestKeeperArgs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := mustPod(t, "", digestHex)
	args := keeperArgs{Pod: p, Namespace: "default", Debug: true}.encode()
	g.Expect(strings.Join(args, " ")).NotTo(ContainSubstring("shim"), "who kills shims by name spares it")
	got, err := decodeKeeperArgs(args)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.Pod.ID()).To(Equal(digestHex))
	g.Expect(got.Namespace).To(Equal("default"))
	g.Expect(got.Debug).To(BeTrue())
	_, err = decodeKeeperArgs(args[:3])
	g.Expect(err).To(HaveOccurred())
	args[2] = "../x"
	_, err = decodeKeeperArgs(args)
	g.Expect(err).To(HaveOccurred())
}
