package bundlegen_test

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// mapped is a spec with a user namespace.
func mapped(uids, gids []rspec.LinuxIDMapping) *rspec.Spec {
	return &rspec.Spec{
		Process: &rspec.Process{},
		Linux: &rspec.Linux{
			UIDMappings: uids, GIDMappings: gids,
			Namespaces: []rspec.LinuxNamespace{{Type: rspec.UserNamespace, Path: "/run/ns/user"}},
		},
	}
}

func TestMapping(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m, err := bundlegen.MappingOf(mapped(
		[]rspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: 5000, HostID: 7, Size: 1}},
		[]rspec.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}},
	))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(m.IsZero()).To(BeFalse())
	for _, tc := range []struct{ uid, gid, hostUID, hostGID uint32 }{
		{0, 0, 100000, 200000}, {999, 65535, 100999, 265535}, {5000, 1, 7, 200001},
	} {
		uid, gid, err := m.Host(tc.uid, tc.gid)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect([]uint32{uid, gid}).To(Equal([]uint32{tc.hostUID, tc.hostGID}))
	}
	for _, tc := range [][2]uint32{{1000, 0}, {4999, 0}, {5001, 0}, {0, 65536}, {math.MaxUint32, 0}} {
		uid, gid, err := m.Host(tc[0], tc[1])
		g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
		g.Expect([]uint32{uid, gid}).To(Equal([]uint32{0, 0}))
	}
}

func TestNoMapping(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, spec := range []*rspec.Spec{{}, {Linux: &rspec.Linux{}}} {
		m, err := bundlegen.MappingOf(spec)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(m.IsZero()).To(BeTrue())
		uid, gid, err := m.Host(3, 4)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect([]uint32{uid, gid}).To(Equal([]uint32{3, 4}))
	}
}

func TestMappingRefuses(t *testing.T) {
	t.Parallel()
	good := []rspec.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	for name, tc := range map[string]struct {
		uids, gids []rspec.LinuxIDMapping
		text       string
	}{
		"nothing":     {nil, nil, "no mappings"},
		"no groups":   {good, nil, "groups: none for root"},
		"no users":    {nil, good, "users: none for root"},
		"no root":     {[]rspec.LinuxIDMapping{{ContainerID: 1, HostID: 100000, Size: 10}}, good, "users: none for root"},
		"empty range": {[]rspec.LinuxIDMapping{{HostID: 1}}, good, "no range"},
		"overflow":    {[]rspec.LinuxIDMapping{{HostID: math.MaxUint32, Size: 2}}, good, "no range"},
		"too many":    {make([]rspec.LinuxIDMapping, 341), good, "at most 340"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := bundlegen.MappingOf(mapped(tc.uids, tc.gids))
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
		})
	}
}

// What is made for the container belongs to its own root and user, not to the host's.
func TestCompleteInUserNamespace(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	rootfs := t.TempDir()
	ranges := []rspec.LinuxIDMapping{{HostID: 100000, Size: 2000}}
	spec := mapped(ranges, []rspec.LinuxIDMapping{{HostID: 300000, Size: 2000}})
	spec.Process.Cwd = "/work/dir"
	id, err := bundlegen.Complete(spec, rootfs, bundlegen.User{Spec: "1000:1001"}, []string{"/data"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(id.UID).To(Equal(uint32(1000)), "numbers of the namespace")
	g.Expect(spec.Process.User.UID).To(Equal(uint32(1000)))
	for path, want := range map[string][2]uint32{"data": {101000, 301001}, "work": {100000, 300000}, "work/dir": {100000, 300000}} {
		info, err := os.Stat(filepath.Join(rootfs, path))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(info.Sys()).To(And(HaveField("Uid", want[0]), HaveField("Gid", want[1])), path)
	}

	_, err = bundlegen.Complete(spec, rootfs, bundlegen.User{Spec: "2000"}, []string{"/more"})
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("2000")))
	g.Expect(filepath.Join(rootfs, "more")).NotTo(BeADirectory())
}
