package idmap_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/shim/idmap"
	"github.com/husk-cri/husk/pkg/errdefs"
)

var mapping = bundlegen.Mapping{
	UIDs: []rspec.LinuxIDMapping{{HostID: 300000, Size: 1000}},
	GIDs: []rspec.LinuxIDMapping{{HostID: 400000, Size: 1000}},
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestMount(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	source, target := t.TempDir(), t.TempDir()
	files := map[string][4]uint32{ // their owners, and what is seen
		"root": {0, 0, 300000, 400000}, "user": {999, 1, 300999, 400001}, "nobody": {1000, 1000, 65534, 65534},
	}
	for name, ids := range files {
		file := filepath.Join(source, name)
		g.Expect(os.WriteFile(file, []byte(name), 0o600)).To(Succeed())
		g.Expect(os.Chown(file, int(ids[0]), int(ids[1]))).To(Succeed())
	}
	if err := idmap.Mount(mapping, source, target); errdefs.Is(err, errdefs.Unsupported) {
		t.Skipf("this file system has no idmapped mounts: %v", err)
	} else {
		g.Expect(err).NotTo(HaveOccurred())
	}
	defer func() { g.Expect(unix.Unmount(target, unix.MNT_DETACH)).To(Succeed()) }()
	for name, ids := range files {
		for dir, want := range map[string][2]uint32{source: {ids[0], ids[1]}, target: {ids[2], ids[3]}} {
			info, err := os.Stat(filepath.Join(dir, name))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(info.Sys()).To(And(HaveField("Uid", want[0]), HaveField("Gid", want[1])), "%s in %s", name, dir)
		}
	}
	g.Expect(os.Remove(filepath.Join(target, "root"))).To(MatchError(syscall.EROFS), "the layers are the pod's")
	g.Expect(filepath.Join(source, "root")).To(BeARegularFile())
}

// The process that holds the namespace for a moment leaves no trace.
func TestMountLeavesNoProcess(t *testing.T) {
	needRoot(t)
	g := NewWithT(t)
	source, target := t.TempDir(), t.TempDir()
	for range 20 {
		err := idmap.Mount(mapping, source, target)
		if errdefs.Is(err, errdefs.Unsupported) {
			t.Skipf("this file system has no idmapped mounts: %v", err)
		}
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(unix.Unmount(target, unix.MNT_DETACH)).To(Succeed())
	}
	children, err := filepath.Glob("/proc/self/task/*/children")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(children).NotTo(BeEmpty())
	for _, file := range children {
		g.Expect(os.ReadFile(file)).To(BeEmpty())
	}
}

func TestMountRefuses(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, tc := range map[string]struct {
		m              bundlegen.Mapping
		source, target string
		kind           errdefs.Kind
		text           string
	}{
		"a file system without": {mapping, "/proc", "", errdefs.Unsupported, "mount_setattr"},
		"no source":             {mapping, "/no/such", "", errdefs.Internal, "/no/such"},
		"no target":             {mapping, "", "/no/such", errdefs.Internal, "move_mount"},
		"overlapping ranges": {bundlegen.Mapping{
			UIDs: []rspec.LinuxIDMapping{{HostID: 1, Size: 10}, {ContainerID: 5, HostID: 100, Size: 10}}, GIDs: mapping.GIDs,
		}, "", "", errdefs.InvalidArgument, "user namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			source, target := t.TempDir(), t.TempDir()
			if tc.source != "" {
				source = tc.source
			}
			if tc.target != "" {
				target = tc.target
			}
			err := idmap.Mount(tc.m, source, target)
			g.Expect(err).To(MatchError(And(ContainSubstring(tc.text), ContainSubstring(source))))
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind))
			var st, parent unix.Stat_t
			if unix.Stat(target, &st) == nil {
				g.Expect(unix.Stat(filepath.Dir(target), &parent)).To(Succeed())
				g.Expect(st.Dev).To(Equal(parent.Dev), "nothing is mounted")
			}
		})
	}
}
