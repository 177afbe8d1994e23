package fakekata

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// rootfs is a request's root file system, whose volume has that JSON.
func rootfs(json string) []Mount {
	return []Mount{{Type: volumeMount, Options: []string{volumeOption + base64.StdEncoding.EncodeToString([]byte(json))}}}
}

const sent = `{"volume_type":"image_guest_pull","source":"said","image_pull":{"metadata":{"from":"volume","both":"volume"}}}`

// TestReference: where each flavour finds the image, whatever the volume says.
func TestReference(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		annotations map[string]string
		goes, rust  string // "": refused
	}{
		"CRI-O's":         {map[string]string{crioType: "container", crioImage: "o", criImage: "c"}, "o", "o"},
		"containerd's":    {map[string]string{criType: "container", crioImage: "o", criImage: "c"}, "c", "c"},
		"both types":      {map[string]string{criType: "container", crioType: "container", crioImage: "o", criImage: "c"}, "c", "c"},
		"only the other":  {map[string]string{crioType: "container", criImage: "c"}, "", ""},
		"empty":           {map[string]string{crioType: "container", crioImage: ""}, "", ""},
		"a sandbox":       {map[string]string{crioType: "sandbox", crioImage: "o"}, "pause", "pause"},
		"no type":         {map[string]string{crioImage: "o", criImage: "c"}, "c", "c"},
		"no type, CRI-O":  {map[string]string{crioImage: "o"}, "", "o"},
		"an unknown type": {map[string]string{crioType: "pod", crioImage: "o"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			for flavour, want := range map[string]string{FlavourGo: tc.goes, FlavourRust: tc.rust} {
				storage, err := storageOf(flavour, "id", &rspec.Spec{Annotations: tc.annotations}, rootfs(sent))
				if want == "" {
					g.Expect(err).To(HaveOccurred(), flavour)
					continue
				}
				g.Expect(err).NotTo(HaveOccurred(), flavour)
				g.Expect(storage.Source).To(Equal(want), flavour)
			}
		})
	}
}

func TestStorage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spec := &rspec.Spec{Annotations: map[string]string{crioType: "container", crioImage: "o", "both": "spec"}}
	g.Expect(storageOf(FlavourGo, "id", spec, rootfs(sent))).To(Equal(&Storage{
		Driver: "image_guest_pull",
		DriverOptions: []string{`image_guest_pull={"metadata":{"both":"spec","from":"volume",` +
			`"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.ImageName":"o"}}`},
		Source: "o", FSType: "overlay", MountPoint: "/run/kata-containers/id/rootfs",
	}))
}

// TestRefusals: by each flavour, what it refuses.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mounts     []Mount
		goes, rust bool // it is taken
	}{
		"none":        {nil, false, false},
		"two":         {append(rootfs(sent), rootfs(sent)...), false, false},
		"a bind":      {[]Mount{{Type: "bind", Source: "/x"}}, false, false},
		"no volume":   {[]Mount{{Type: volumeMount, Options: []string{"ro"}}}, false, false},
		"no base64":   {[]Mount{{Type: volumeMount, Options: []string{volumeOption + "*"}}}, false, false},
		"no JSON":     {rootfs("{"), false, false},
		"no type":     {rootfs(`{"source":"a"}`), false, false},
		"another":     {rootfs(`{"volume_type":"image_raw_block","source":"a"}`), false, false},
		"no source":   {rootfs(`{"volume_type":"image_guest_pull","image_pull":{"metadata":{}}}`), true, false},
		"no metadata": {rootfs(`{"volume_type":"image_guest_pull","source":"a"}`), false, true},
		"all":         {rootfs(sent), true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			for flavour, taken := range map[string]bool{FlavourGo: tc.goes, FlavourRust: tc.rust} {
				_, err := volumeOf(flavour, tc.mounts)
				g.Expect(err == nil).To(Equal(taken), "%s: %v", flavour, err)
			}
		})
	}
}

// TestProcess: the numbers stand, a name is nothing.
func TestProcess(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	got, err := processOf(&rspec.Process{Args: []string{"a"}, Cwd: "/", User: rspec.User{Username: "web", GID: 2, AdditionalGids: []uint32{3}}})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got).To(Equal(Process{Args: []string{"a"}, Env: []string{}, Cwd: "/", GID: 2, Groups: []uint32{3}}))
	for _, p := range []rspec.Process{{Cwd: "/"}, {Args: []string{""}, Cwd: "/"}, {Args: []string{"a"}}, {Args: []string{"a"}, Cwd: "x"}} {
		g.Expect(processOf(&p)).Error().To(HaveOccurred(), "%+v", p)
	}
}

func TestReadSpec(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	g.Expect(readSpec("id", dir)).Error().To(MatchError(os.ErrNotExist))
	g.Expect(os.WriteFile(file, []byte(`{"process":{},"root":{},"linux":{}}`), 0o600)).To(Succeed())
	g.Expect(readSpec("id", dir)).NotTo(BeNil())
	g.Expect(readSpec("", dir)).Error().To(MatchError(ContainSubstring("container ID")))
	g.Expect(readSpec("id", "")).Error().To(MatchError(ContainSubstring("bundle path")))
	g.Expect(readSpec("id", file)).Error().To(MatchError(ContainSubstring("directory")))
	for _, bad := range []string{"{", `{"process":{}}`} {
		g.Expect(os.WriteFile(file, []byte(bad), 0o600)).To(Succeed())
		g.Expect(readSpec("id", dir)).Error().To(HaveOccurred(), bad)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "c.toml")
	for text, ok := range map[string]bool{
		`record = "/r"`:                       true,
		"record = \"/r\"\nflavour = \"rust\"": true,
		"record = \"/r\"\nflavour = \"c\"":    false,
		`record = "r"`:                        false,
		"record = \"/r\"\nflavor = \"go\"":    false,
	} {
		g.Expect(os.WriteFile(path, []byte(text), 0o600)).To(Succeed())
		_, err := loadConfig(path)
		g.Expect(err == nil).To(Equal(ok), "%s: %v", text, err)
	}
	g.Expect(loadConfig("")).Error().To(HaveOccurred())
}
