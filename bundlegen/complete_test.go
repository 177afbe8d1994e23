package bundlegen

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// self is a user whose directories an unprivileged test can make.
func self() User { return User{Spec: fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())} }

func TestComplete(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	dir := rootfs(t, testPasswd, testGroup)
	spec := &rspec.Spec{
		Root:    &rspec.Root{Path: "/elsewhere", Readonly: true},
		Process: &rspec.Process{Cwd: "/srv/app", Env: []string{"PATH=/bin"}, User: rspec.User{UID: PlaceholderID, GID: PlaceholderID}},
		Mounts:  []rspec.Mount{{Destination: "/proc"}, {Destination: "/mounted/"}},
	}
	id, err := Complete(spec, dir+"/", User{Spec: "web"}, []string{"/data/db", "/mounted", "/mounted/below", "/mountedtoo", "/"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(id).To(Equal(Identity{1000, 1000, []uint32{1000, 50, 10}, "/home/web"}))
	g.Expect(spec.Root).To(Equal(&rspec.Root{Path: dir, Readonly: true}))
	g.Expect(spec.Process.User).To(Equal(rspec.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000, 50, 10}}))
	g.Expect(spec.Process.Env).To(Equal([]string{"PATH=/bin", "HOME=/home/web"}))
	g.Expect(spec.Process.Cwd).To(Equal("/srv/app"))

	expectDir(g, dir, "srv", 0)
	expectDir(g, dir, "srv/app", 0)
	expectDir(g, dir, "data", 1000)
	expectDir(g, dir, "data/db", 1000)
	expectDir(g, dir, "mountedtoo", 1000)
	g.Expect(filepath.Join(dir, "mounted")).NotTo(BeAnExistingFile())
}

func expectDir(g Gomega, rootfs, name string, owner uint32) {
	info, err := os.Lstat(filepath.Join(rootfs, name))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode()).To(Equal(os.ModeDir | 0o755))
	stat := info.Sys().(*syscall.Stat_t)
	g.Expect([]uint32{stat.Uid, stat.Gid}).To(Equal([]uint32{owner, owner}), name)
}

func TestCompleteLeavesWhatIsThere(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.MkdirAll(filepath.Join(dir, "srv"), 0o700)).To(Succeed())
	g.Expect(os.WriteFile(filepath.Join(dir, "srv/file"), []byte("x"), 0o600)).To(Succeed())
	_, err := Complete(&rspec.Spec{Process: &rspec.Process{Cwd: "/srv"}}, dir, self(), []string{"/srv"})
	g.Expect(err).NotTo(HaveOccurred())
	info, err := os.Stat(filepath.Join(dir, "srv"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o700)))
	g.Expect(os.ReadFile(filepath.Join(dir, "srv/file"))).To(Equal([]byte("x")))
}

// WORKDIR and VOLUME are often the same: then the directory is the user's, as with CRI-O.
func TestCompleteVolumeIsTheWorkingDirectory(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	dir := t.TempDir()
	_, err := Complete(&rspec.Spec{Process: &rspec.Process{Cwd: "/data"}}, dir, User{Spec: "7:7"}, []string{"/data"})
	g.Expect(err).NotTo(HaveOccurred())
	expectDir(g, dir, "data", 7)
}

func TestCompleteDefaultsAndRefusals(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	spec := &rspec.Spec{Process: &rspec.Process{}}
	_, err := Complete(spec, dir, User{}, nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(spec.Process.Cwd).To(Equal("/"))
	g.Expect(spec.Root.Path).To(Equal(dir))
	g.Expect(spec.Process.Env).To(Equal([]string{"HOME=/"}))

	for name, call := range map[string]func() error{
		"no process": func() error { _, err := Complete(&rspec.Spec{}, dir, User{}, nil); return err },
		"relative cwd": func() error {
			_, err := Complete(&rspec.Spec{Process: &rspec.Process{Cwd: "srv"}}, dir, User{}, nil)
			return err
		},
		"relative volume": func() error { _, err := Complete(spec, dir, User{}, []string{"data"}); return err },
		"relative rootfs": func() error { _, err := Complete(spec, "rootfs", User{}, nil); return err },
	} {
		g.Expect(errdefs.Is(call(), errdefs.InvalidArgument)).To(BeTrue(), name)
	}
}

// A user who cannot be resolved leaves the spec, placeholder and all, as it was.
func TestCompleteWithUnknownUser(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := rootfs(t, testPasswd, testGroup)
	user := rspec.User{UID: PlaceholderID, GID: PlaceholderID, AdditionalGids: []uint32{PlaceholderID}}
	spec := &rspec.Spec{Process: &rspec.Process{Cwd: "/new", User: user}}
	_, err := Complete(spec, dir, User{Spec: "nosuch"}, []string{"/data"})
	g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue(), "%v", err)
	g.Expect(spec).To(Equal(&rspec.Spec{Process: &rspec.Process{Cwd: "/new", User: user}}))
	g.Expect(filepath.Join(dir, "data")).NotTo(BeAnExistingFile())
	g.Expect(filepath.Join(dir, "new")).NotTo(BeAnExistingFile())
}
