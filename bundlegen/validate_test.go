package bundlegen

import (
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(*rspec.Spec)
		says  []string
	}{
		"version":               {func(s *rspec.Spec) { s.Version = "1.0" }, []string{`"1.0"`}},
		"no process":            {func(s *rspec.Spec) { s.Process = nil }, []string{"process"}},
		"no root":               {func(s *rspec.Spec) { s.Root = nil }, []string{"root.path"}},
		"no linux":              {func(s *rspec.Spec) { s.Linux = nil }, []string{"linux"}},
		"no command":            {func(s *rspec.Spec) { s.Process.Args = nil }, []string{"no command"}},
		"relative cwd":          {func(s *rspec.Spec) { s.Process.Cwd = "srv" }, []string{`"srv" is not an absolute path`}},
		"NUL":                   {func(s *rspec.Spec) { s.Process.Args[0] = "\x00" }, []string{"NUL in the command"}},
		"no variable":           {func(s *rspec.Spec) { s.Process.Env = []string{"A=1", "B", "=C"} }, []string{"entry 1 of env", "entry 2 of env"}},
		"not UTF-8":             {func(s *rspec.Spec) { s.Process.Env = []string{"A=\xff"} }, []string{"not UTF-8"}},
		"capability":            {func(s *rspec.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_NONE"} }, []string{"CAP_NONE"}},
		"permitted and no more": {func(s *rspec.Spec) { s.Process.Capabilities.Permitted = nil }, []string{"not permitted"}},
		"rlimit":                {func(s *rspec.Spec) { s.Process.Rlimits = []rspec.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}} }, []string{"RLIMIT_CORE"}},
		"relative mount":        {func(s *rspec.Spec) { s.Mounts[0].Destination = "proc" }, []string{`"proc" of mount 0`}},
		"two of a kind": {func(s *rspec.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, rspec.LinuxNamespace{Type: "pid"})
		},
			[]string{`"pid"`}},
		"relative namespace":    {func(s *rspec.Spec) { s.Linux.Namespaces[0].Path = "ns/pid" }, []string{`"ns/pid"`}},
		"hostname of the host":  {func(s *rspec.Spec) { s.Hostname, s.Linux.Namespaces = "h", nil }, []string{"no uts namespace"}},
		"mappings of no userns": {func(s *rspec.Spec) { s.Linux.UIDMappings = []rspec.LinuxIDMapping{{Size: 1}} }, []string{"no user namespace"}},
		"masked path":           {func(s *rspec.Spec) { s.Linux.MaskedPaths = []string{"proc/kcore"} }, []string{"proc/kcore"}},
		"readonly path":         {func(s *rspec.Spec) { s.Linux.ReadonlyPaths = []string{"proc/sys"} }, []string{"proc/sys"}},
		"hook":                  {func(s *rspec.Spec) { s.Hooks = &rspec.Hooks{Prestart: []rspec.Hook{{Path: "hook"}}} }, []string{"hook"}}, //nolint:staticcheck // SA1019: deprecated, and so what is left to check
		"several":               {func(s *rspec.Spec) { s.Process.Cwd, s.Mounts[1].Destination = "srv", "dev" }, []string{`"srv"`, `"dev"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, imgspec.ImageConfig{})
			spec, err := Spec(rec, pulled, Request{}, SpecOptions{})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(Validate(spec)).To(Succeed())
			tc.spoil(spec)
			err = Validate(spec)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
			for _, says := range tc.says {
				g.Expect(err).To(MatchError(ContainSubstring(says)))
			}
		})
	}
	NewWithT(t).Expect(errdefs.Is(Validate(nil), errdefs.InvalidArgument)).To(BeTrue())
}

// Specs as CRI-O writes them, and paths in them that lead to this machine's files.
func TestValidateTakes(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*rspec.Spec){
		"a joined uts namespace": func(s *rspec.Spec) {
			s.Hostname, s.Linux.Namespaces = "h", []rspec.LinuxNamespace{{Type: rspec.UTSNamespace, Path: "/run/ns"}}
		},
		"a joined user namespace": func(s *rspec.Spec) {
			s.Linux.UIDMappings = []rspec.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.Namespaces = append(s.Linux.Namespaces, rspec.LinuxNamespace{Type: rspec.UserNamespace, Path: "/run/user"})
		},
		"a variable with a dot":   func(s *rspec.Spec) { s.Process.Env = []string{"spring.profile-x=prod", "EMPTY="} },
		"Husk's annotations":      func(s *rspec.Spec) { s.Annotations[stopSignalAnnotation] = "SIGINT" },
		"a program of the host's": func(s *rspec.Spec) { s.Process.Args[0] = "/../../../../../../../etc/passwd" },
		"a device of the host's": func(s *rspec.Spec) {
			s.Linux.Devices = []rspec.LinuxDevice{{Path: "/../../../dev/null", Type: "b", Major: 1, Minor: 9}}
		},
		"an apparmor profile": func(s *rspec.Spec) { s.Process.ApparmorProfile = "crio-default" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			rec, pulled := record(t, imgspec.ImageConfig{})
			spec, err := Spec(rec, pulled, Request{}, SpecOptions{})
			g.Expect(err).NotTo(HaveOccurred())
			change(spec)
			g.Expect(Validate(spec)).To(Succeed())
		})
	}
}
