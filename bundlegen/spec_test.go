package bundlegen

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/contrib/seccomp"
	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// update writes the golden files anew: go test ./bundlegen -run Golden -update.
func update() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write testdata/*.json anew")
	flag.Parse()
	os.Exit(m.Run())
}

// newNamespaces are those of a node with cgroup v2, which the node of the test may not be.
func newNamespaces() []rspec.LinuxNamespace {
	return []rspec.LinuxNamespace{
		{Type: rspec.PIDNamespace}, {Type: rspec.NetworkNamespace}, {Type: rspec.IPCNamespace},
		{Type: rspec.UTSNamespace}, {Type: rspec.MountNamespace}, {Type: rspec.CgroupNamespace},
	}
}

// fullConfig says something in every field of an image config.
func fullConfig() imgspec.ImageConfig {
	return imgspec.ImageConfig{
		User: "web:staff", ExposedPorts: map[string]struct{}{"80/tcp": {}, "443": {}},
		Env:        []string{"PATH=/app/bin:/bin", "LANG=C.UTF-8", "KEPT=image", "TERM=dumb"},
		Entrypoint: []string{"/entry", "--flag"}, Cmd: []string{"default", "arg"},
		Volumes: map[string]struct{}{"/data": {}, "/cache/": {}}, WorkingDir: "/srv",
		Labels:     map[string]string{"io.kubernetes.cri-o.SandboxID": "forged", "husk.dev/user": `{"user":"0"}`, "org.example": "x"},
		StopSignal: "SIGQUIT",
	}
}

func TestSpecGolden(t *testing.T) {
	t.Parallel()
	names := RewriteOptions{ResolvesNames: true}
	for name, make := range map[string]func(testing.TB) (*rspec.Spec, error){
		"least": func(t testing.TB) (*rspec.Spec, error) {
			rec, pulled := record(t, imgspec.ImageConfig{})
			return Spec(rec, pulled, Request{}, SpecOptions{Namespaces: newNamespaces(), Unconfined: true})
		},
		"image": func(t testing.TB) (*rspec.Spec, error) {
			rec, pulled := record(t, fullConfig())
			return Spec(rec, pulled, Request{}, SpecOptions{RewriteOptions: names, Namespaces: newNamespaces(), Unconfined: true, Hostname: "pod"})
		},
		"request-over-image": func(t testing.TB) (*rspec.Spec, error) {
			rec, pulled := record(t, fullConfig())
			return Spec(rec, pulled, Request{
				Command: []string{"/bin/other"}, Args: []string{"$(NOT_EXPANDED)", ""}, Env: []string{"A=$(B)", "PATH=/req", "EMPTY="},
				WorkingDir: "/work", StopSignal: "SIGUSR1", RunAsUser: ptr(int64(1234)), RunAsGroup: ptr(int64(77)),
				SupplementalGroups: []int64{5, 77, 5, 6}, GroupsPolicy: Strict,
			}, SpecOptions{RewriteOptions: names, Namespaces: newNamespaces(), Unconfined: true})
		},
		"options": func(t testing.TB) (*rspec.Spec, error) {
			rec, pulled := record(t, imgspec.ImageConfig{User: "7:8"})
			return Spec(rec, pulled, Request{}, SpecOptions{
				RewriteOptions: RewriteOptions{KeepTag: true}, Hostname: "pod", RootPath: "/run/x/rootfs", ReadonlyRoot: true, Terminal: true, NoNewPrivileges: true,
				Mounts: []rspec.Mount{
					{Destination: "/dev/shm/", Type: "bind", Source: "/run/shm", Options: []string{"rw", "bind"}},
					{Destination: "/etc/resolv.conf", Type: "bind", Source: "/run/resolv", Options: []string{"ro", "bind"}},
				},
				Namespaces:  []rspec.LinuxNamespace{{Type: rspec.UTSNamespace, Path: "/run/ns/uts"}, {Type: rspec.MountNamespace}},
				CgroupsPath: "/husk/x", OOMScoreAdj: ptr(-997), Unconfined: true, Capabilities: []string{"chown", "CAP_NET_RAW", "CHOWN"},
				Annotations: map[string]string{annotations.CRIOSandboxID: "sandbox", "org.example/own": "kept"},
			})
		},
		"sandbox": func(testing.TB) (*rspec.Spec, error) {
			return SandboxSpec([]string{"/pause", "x"}, SpecOptions{
				Namespaces: newNamespaces(), Hostname: "pod", Unconfined: true,
				Mounts:      []rspec.Mount{{Destination: "/pause", Type: "bind", Source: "/usr/bin/husk", Options: []string{"ro", "bind"}}},
				Annotations: map[string]string{annotations.CRIOContainerType: annotations.ContainerTypeSandbox},
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			spec, err := make(t)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(Validate(spec)).To(Succeed())
			expectGolden(t, name, spec)
		})
	}
}

// expectGolden compares with testdata/NAME.json, but for what depends on the machine.
func expectGolden(t *testing.T, name string, spec *rspec.Spec) {
	t.Helper()
	g := NewWithT(t)
	spec.Linux.MaskedPaths = slices.DeleteFunc(spec.Linux.MaskedPaths, func(p string) bool { return strings.HasSuffix(p, "/thermal_throttle") })
	got, err := json.MarshalIndent(spec, "", "  ")
	g.Expect(err).NotTo(HaveOccurred())
	file := filepath.Join("testdata", name+".json")
	if update() {
		g.Expect(os.WriteFile(file, append(got, '\n'), 0o644)).To(Succeed())
	}
	want, err := os.ReadFile(file)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(got)).To(Equal(string(bytes.TrimSpace(want))))
}

// The node's variables, then the request's, then the image's: the later replaces the
// earlier in its place, but the image nothing of the request.
func TestSpecEnv(t *testing.T) {
	t.Parallel()
	type list = []string
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for name, tc := range map[string]struct {
		image, request list
		hostname       string
		want           list
	}{
		"none":                {nil, nil, "", list{path, "TERM=xterm"}},
		"hostname":            {nil, nil, "pod", list{path, "TERM=xterm", "HOSTNAME=pod"}},
		"image over node":     {list{"PATH=/i", "HOSTNAME=i", "A=i"}, nil, "pod", list{"PATH=/i", "TERM=xterm", "HOSTNAME=i", "A=i"}},
		"request over node":   {nil, list{"TERM=r"}, "", list{path, "TERM=r"}},
		"request over image":  {list{"PATH=/i", "A=i", "B=i"}, list{"B=r", "PATH=/r"}, "", list{"PATH=/r", "TERM=xterm", "B=r", "A=i"}},
		"empty values":        {list{"PATH="}, list{"TERM="}, "", list{"PATH=", "TERM="}},
		"nothing is expanded": {list{"A=$(PATH)"}, list{"B=$(A)$$"}, "", list{path, "TERM=xterm", "B=$(A)$$", "A=$(PATH)"}},
		"no variable":         {list{"A", "=", "B=i"}, nil, "", list{path, "TERM=xterm", "B=i"}},
		"HOME is not made up": {list{"HOME=/h"}, nil, "", list{path, "TERM=xterm", "HOME=/h"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, imgspec.ImageConfig{Env: tc.image})
			spec, err := Spec(rec, pulled, Request{Env: tc.request}, SpecOptions{Hostname: tc.hostname})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(spec.Process.Env).To(Equal(tc.want))
		})
	}
}

// The ids of a spec are known, or nobody's where the runtime will look them up.
func TestSpecUser(t *testing.T) {
	t.Parallel()
	type gids = []uint32
	num := func(id int64) *int64 { return &id }
	for name, tc := range map[string]struct {
		image    string
		req      Request
		resolves bool
		uid, gid uint32
		groups   gids
	}{
		"none":                        {"", Request{}, false, 0, 0, gids{0}},
		"none, looked up":             {"", Request{}, true, 0, 0, gids{0}},
		"uid":                         {"7", Request{}, false, 7, 0, gids{0}},
		"uid, group looked up":        {"7", Request{}, true, 7, PlaceholderID, gids{PlaceholderID}},
		"uid:gid":                     {"7:8", Request{}, false, 7, 8, gids{8}},
		"name":                        {"web", Request{}, true, PlaceholderID, PlaceholderID, gids{PlaceholderID}},
		"name:gid":                    {"web:8", Request{}, true, PlaceholderID, 8, gids{8}},
		"uid:name":                    {"7:staff", Request{}, true, 7, PlaceholderID, gids{PlaceholderID}},
		"name:name":                   {"web:staff", Request{}, true, PlaceholderID, PlaceholderID, gids{PlaceholderID}},
		"uid of the request":          {"web:staff", Request{RunAsUser: num(9)}, false, 9, 0, gids{0}},
		"root of the request":         {"web", Request{RunAsUser: num(0)}, true, 0, 0, gids{0}},
		"name of the request":         {"7", Request{RunAsUsername: "db", RunAsUser: num(9)}, true, PlaceholderID, PlaceholderID, gids{PlaceholderID}},
		"group of the request":        {"7", Request{RunAsUser: num(9), RunAsGroup: num(5)}, false, 9, 5, gids{5}},
		"groups, Merge":               {"7:8", Request{SupplementalGroups: []int64{5, 8, 6, 5}}, false, 7, 8, gids{8, 5, 6}},
		"groups, Strict":              {"7:8", Request{SupplementalGroups: []int64{5}, GroupsPolicy: Strict}, false, 7, 8, gids{8, 5}},
		"groups beside a placeholder": {"web", Request{SupplementalGroups: []int64{5}}, true, PlaceholderID, PlaceholderID, gids{PlaceholderID, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, imgspec.ImageConfig{User: tc.image})
			spec, err := Spec(rec, pulled, tc.req, SpecOptions{RewriteOptions: RewriteOptions{ResolvesNames: tc.resolves}})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(spec.Process.User).To(Equal(rspec.User{UID: tc.uid, GID: tc.gid, AdditionalGids: tc.groups}))
		})
	}
}

// What an image says of itself never becomes what the node says of the container.
func TestSpecTakesNoAnnotationFromLabels(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	rec, pulled := record(t, fullConfig())
	spec, err := Spec(rec, pulled, Request{}, SpecOptions{RewriteOptions: RewriteOptions{ResolvesNames: true}})
	g.Expect(err).NotTo(HaveOccurred())
	changes, err := Rewrite(rec, pulled, Request{}, RewriteOptions{ResolvesNames: true})
	g.Expect(err).NotTo(HaveOccurred())
	changes.Annotations["org.opencontainers.image.stopSignal"] = "SIGQUIT"
	g.Expect(spec.Annotations).To(Equal(changes.Annotations))
}

func TestSpecNamespaces(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	rec, pulled := record(t, imgspec.ImageConfig{})
	spec, err := Spec(rec, pulled, Request{}, SpecOptions{})
	g.Expect(err).NotTo(HaveOccurred())
	want := newNamespaces()
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil { // cgroup v1
		want = want[:5]
	}
	g.Expect(spec.Linux.Namespaces).To(Equal(want))
	spec, err = Spec(rec, pulled, Request{}, SpecOptions{Namespaces: []rspec.LinuxNamespace{}})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(spec.Linux.Namespaces).To(BeEmpty(), "none is not nil")
}

func TestSpecSeccompFollowsTheCapabilities(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	rec, pulled := record(t, imgspec.ImageConfig{})
	allowed := func(opts SpecOptions) []string {
		spec, err := Spec(rec, pulled, Request{}, opts)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(spec.Linux.Seccomp).To(Equal(seccomp.DefaultProfile(spec)))
		g.Expect(spec.Linux.Seccomp.DefaultAction).To(Equal(rspec.ActErrno))
		var names []string
		for _, rule := range spec.Linux.Seccomp.Syscalls {
			if rule.Action == rspec.ActAllow && len(rule.Args) == 0 {
				names = append(names, rule.Names...)
			}
		}
		return names
	}
	g.Expect(allowed(SpecOptions{})).NotTo(ContainElement("mount"))
	g.Expect(allowed(SpecOptions{Capabilities: []string{"SYS_ADMIN"}})).To(ContainElement("mount"))
}

func TestSpecMounts(t *testing.T) {
	t.Parallel()
	rec, pulled := record(t, imgspec.ImageConfig{})
	standard := []string{"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"}
	for name, tc := range map[string]struct{ added, want []string }{
		"none":           {nil, standard},
		"own order":      {[]string{"/z/deep", "/a"}, append(slices.Clone(standard), "/z/deep", "/a")},
		"over a mount":   {[]string{"/dev/shm"}, []string{"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/dev/shm"}},
		"over /dev":      {[]string{"/dev/"}, []string{"/proc", "/sys", "/sys/fs/cgroup", "/dev/"}},
		"over /sys":      {[]string{"/sys"}, []string{"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"}},
		"beside /dev":    {[]string{"/devices"}, append(slices.Clone(standard), "/devices")},
		"below a mount":  {[]string{"/proc/x"}, append(slices.Clone(standard), "/proc/x")},
		"written oddly":  {[]string{"/x/../proc"}, append(slices.Clone(standard[1:]), "/x/../proc")},
		"the whole root": {[]string{"/"}, append(slices.Clone(standard), "/")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			var added []rspec.Mount
			for _, dest := range tc.added {
				added = append(added, rspec.Mount{Destination: dest, Type: "bind", Source: "/x", Options: []string{"bind"}})
			}
			spec, err := Spec(rec, pulled, Request{}, SpecOptions{Mounts: added})
			g.Expect(err).NotTo(HaveOccurred())
			var got []string
			for _, m := range spec.Mounts {
				got = append(got, m.Destination)
			}
			g.Expect(got).To(Equal(tc.want))
		})
	}
}

func TestSpecRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config imgspec.ImageConfig
		req    Request
		opts   SpecOptions
		kind   errdefs.Kind
		says   string
	}{
		"a name nobody resolves":   {imgspec.ImageConfig{User: "web"}, Request{}, SpecOptions{}, errdefs.UserUnresolvable, "set runAsUser"},
		"nothing to run":           {imgspec.ImageConfig{Cmd: []string{}}, Request{}, SpecOptions{}, errdefs.InvalidArgument, "no command"},
		"NUL in the command":       {imgspec.ImageConfig{Cmd: []string{"a\x00b"}}, Request{}, SpecOptions{}, errdefs.InvalidArgument, "NUL in the command"},
		"NUL in the env":           {imgspec.ImageConfig{Env: []string{"A=\x00"}}, Request{}, SpecOptions{}, errdefs.InvalidArgument, "NUL in the env"},
		"NUL in the directory":     {imgspec.ImageConfig{WorkingDir: "/\x00"}, Request{}, SpecOptions{}, errdefs.InvalidArgument, "NUL in the working directory"},
		"relative directory":       {imgspec.ImageConfig{WorkingDir: "srv"}, Request{}, SpecOptions{}, errdefs.InvalidArgument, `"srv" is not an absolute path`},
		"unknown capability":       {imgspec.ImageConfig{}, Request{}, SpecOptions{Capabilities: []string{"ALL"}}, errdefs.InvalidArgument, "CAP_ALL"},
		"relative mount":           {imgspec.ImageConfig{}, Request{}, SpecOptions{Mounts: []rspec.Mount{{Destination: "x"}}}, errdefs.InvalidArgument, `"x" is not an absolute path`},
		"Husk's annotation":        {imgspec.ImageConfig{}, Request{}, SpecOptions{Annotations: map[string]string{annotations.ImageMounts: "[]"}}, errdefs.InvalidArgument, annotations.ImageMounts},
		"Husk's future annotation": {imgspec.ImageConfig{}, Request{}, SpecOptions{Annotations: map[string]string{"husk.dev/new": ""}}, errdefs.InvalidArgument, "husk.dev/new"},
		"the image's name": {imgspec.ImageConfig{}, Request{}, SpecOptions{Annotations: map[string]string{annotations.CRIOImageName: "other"}},
			errdefs.InvalidArgument, annotations.CRIOImageName},
		"another stop signal": {imgspec.ImageConfig{StopSignal: "SIGINT"}, Request{}, SpecOptions{Annotations: map[string]string{stopSignalAnnotation: "x"}},
			errdefs.InvalidArgument, stopSignalAnnotation},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, tc.config)
			spec, err := Spec(rec, pulled, tc.req, tc.opts)
			g.Expect(spec).To(BeNil())
			g.Expect(err).To(MatchError(And(ContainSubstring(tc.says), ContainSubstring("registry.example/app:1"))))
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind))
		})
	}
}

func TestSandboxSpecRefuses(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, args := range [][]string{nil, {}, {"/a\x00"}} {
		_, err := SandboxSpec(args, SpecOptions{})
		g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%q: %v", args, err)
	}
	_, err := SandboxSpec([]string{"/pause"}, SpecOptions{Annotations: map[string]string{annotations.RecordID: "x"}})
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
	_, err = SandboxSpec([]string{"/pause"}, SpecOptions{Annotations: map[string]string{annotations.RuntimeHandler: "x"}})
	g.Expect(err).NotTo(HaveOccurred(), "the one key of Husk that is anybody's")
}

// A spec shares no memory with what it was made of: a caller goes on to change it.
func TestSpecLeavesItsInputAlone(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	rec, pulled := record(t, fullConfig())
	opts := func() SpecOptions {
		return SpecOptions{
			RewriteOptions: RewriteOptions{ResolvesNames: true}, Mounts: []rspec.Mount{{Destination: "/x", Options: []string{"ro"}}},
			Namespaces: newNamespaces(), OOMScoreAdj: ptr(1), Annotations: map[string]string{"a.b": "c"}, Capabilities: []string{"KILL"},
		}
	}
	given := opts()
	spec, err := Spec(rec, pulled, Request{Args: []string{"a"}, Env: []string{"A=1"}}, given)
	g.Expect(err).NotTo(HaveOccurred())
	spec.Mounts[len(spec.Mounts)-1].Options[0] = "rw"
	spec.Linux.Namespaces[0].Path = "/x"
	spec.Process.Capabilities.Bounding[0] = "x"
	g.Expect(spec.Process.Capabilities.Effective[0]).To(Equal("CAP_KILL"))
	*spec.Process.OOMScoreAdj = 2
	spec.Process.Args[0], spec.Process.Env[0] = "x", "x"
	spec.Annotations["a.b"] = "x"
	g.Expect(given).To(Equal(opts()))
	g.Expect(rec.Image.Config).To(Equal(fullConfig()))
}

// A container in the usual way: an image as of a language's base image, kubelet's
// variables, a pod's namespaces. The goal is 200 microseconds.
func BenchmarkSpec(b *testing.B) {
	rec, pulled := record(b, fullConfig())
	req := Request{Args: []string{"serve"}}
	for _, name := range []string{"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_PORT", "DB_HOST", "DB_PORT", "MODE", "LANG", "TZ"} {
		req.Env = append(req.Env, name+"=value")
	}
	opts := SpecOptions{
		RewriteOptions: RewriteOptions{ResolvesNames: true}, Hostname: "pod", CgroupsPath: "/husk/x",
		Mounts:      []rspec.Mount{{Destination: "/etc/resolv.conf", Type: "bind", Source: "/run/resolv", Options: []string{"ro", "bind"}}},
		Annotations: map[string]string{annotations.CRIOSandboxID: "sandbox", annotations.CRIOContainerType: "container"},
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Spec(rec, pulled, req, opts); err != nil {
			b.Fatal(err)
		}
	}
}
