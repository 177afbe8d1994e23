package bundlegen

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// hang is how long a call may take before a test says that it hangs.
const hang = 10 * time.Second

// within fails the test when f does not return in time.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(hang):
		t.Fatal("hangs")
	}
}

// A rootfs whose passwd or group file is anything but a file of its own.
func TestResolveHostileFiles(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	canary := filepath.Join(host, "passwd")
	if err := os.WriteFile(canary, []byte("web:x:0:0::/canary:\nstaff:x:0:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The canary is reached through as many ".." as any host has.
	up := strings.Repeat("../", 40)
	for name, tc := range map[string]struct {
		plant func(path string) error
		kind  errdefs.Kind
	}{
		"absolute symlink to the host": {func(p string) error { return os.Symlink(canary, p) }, errdefs.UserUnresolvable},
		"relative symlink to the host": {func(p string) error { return os.Symlink(up+canary[1:], p) }, errdefs.UserUnresolvable},
		"magic link":                   {func(p string) error { return os.Symlink("/proc/self/root"+canary, p) }, errdefs.UserUnresolvable},
		"symlink to itself":            {func(p string) error { return os.Symlink(filepath.Base(p), p) }, errdefs.UserUnresolvable},
		"symlink loop": {func(p string) error {
			return errors.Join(os.Symlink("/etc/loop", p), os.Symlink("/etc/"+filepath.Base(p), filepath.Join(filepath.Dir(p), "loop")))
		}, errdefs.UserUnresolvable},
		"fifo":      {func(p string) error { return syscall.Mkfifo(p, 0o644) }, errdefs.UserUnresolvable},
		"directory": {func(p string) error { return os.Mkdir(p, 0o755) }, errdefs.UserUnresolvable},
		"socket":    {func(p string) error { return syscall.Mknod(p, syscall.S_IFSOCK|0o644, 0) }, errdefs.UserUnresolvable},
		"symlink to a fifo": {func(p string) error {
			return errors.Join(syscall.Mkfifo(p+"-", 0o644), os.Symlink("/etc/"+filepath.Base(p)+"-", p))
		}, errdefs.UserUnresolvable},
		"huge sparse file": {func(p string) error {
			return errors.Join(os.WriteFile(p, []byte("web:x:7:7::/:\n"), 0o644), os.Truncate(p, 1<<40))
		}, errdefs.TooLarge},
	} {
		for _, file := range []string{"passwd", "group"} {
			t.Run(name+", "+file, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				dir := rootfs(t, testPasswd, testGroup)
				path := filepath.Join(dir, "etc", file)
				g.Expect(os.Remove(path)).To(Succeed())
				g.Expect(tc.plant(path)).To(Succeed())
				within(t, func() {
					id, err := Resolve(dir, User{Spec: "web:staff"})
					g.Expect(err).To(HaveOccurred())
					g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), err.Error())
					g.Expect(id).To(BeZero())
				})
			})
		}
	}
	NewWithT(t).Expect(os.ReadFile(canary)).To(Equal([]byte("web:x:0:0::/canary:\nstaff:x:0:\n")))
}

func TestResolveDeviceAsPasswd(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := rootfs(t, "", testGroup)
	if err := syscall.Mknod(filepath.Join(dir, "etc", "passwd"), syscall.S_IFCHR|0o644, 1<<8|5); err != nil {
		t.Skip("needs root: mknod: ", err)
	}
	within(t, func() { // 1:5 is /dev/zero: a read never ends
		_, err := Resolve(dir, User{Spec: "0"})
		g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue(), "%v", err)
	})
}

// Absolute symlinks are normal in images: they lead to the image, not to the host.
func TestResolveSymlinkInsideTheImage(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"/nix/store/passwd", "../nix/store/passwd", "../../../nix/store/passwd"} {
		g := NewWithT(t)
		dir := rootfs(t, "", testGroup)
		g.Expect(os.MkdirAll(filepath.Join(dir, "nix/store"), 0o755)).To(Succeed())
		g.Expect(os.WriteFile(filepath.Join(dir, "nix/store/passwd"), []byte(testPasswd), 0o644)).To(Succeed())
		g.Expect(os.Symlink(target, filepath.Join(dir, "etc/passwd"))).To(Succeed())
		id, err := Resolve(dir, User{Spec: "web"})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(id.UID).To(Equal(uint32(1000)))
	}
}

func TestResolveEtcIsASymlinkToTheHost(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.Symlink("/etc", filepath.Join(dir, "etc"))).To(Succeed())
	_, err := Resolve(dir, User{Spec: "root"})
	g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue(), "%v", err)
	g.Expect(os.Remove(filepath.Join(dir, "etc"))).To(Succeed())

	g.Expect(os.Symlink(strings.Repeat("../", 40)+"etc", filepath.Join(dir, "etc"))).To(Succeed())
	_, err = Resolve(dir, User{Spec: "root"})
	g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue(), "%v", err)
}

func TestResolveBounds(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	// The largest file that is read, in the shape that costs a careless parser most.
	line := []byte("web:x:7:7::/:\n")
	colons := append(bytes.Repeat([]byte(":"), maxFileBytes-len(line)-1), '\n')
	dir := rootfs(t, string(append(colons, line...)), strings.Repeat(",", maxFileBytes))
	id, err := Resolve(dir, User{Spec: "web"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(id.UID).To(Equal(uint32(7)))

	var groups bytes.Buffer
	for i := range maxGroups + 1 {
		fmt.Fprintf(&groups, "g::%d:web\n", i)
	}
	_, err = Resolve(rootfs(t, testPasswd, groups.String()), User{Spec: "web"})
	g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue(), "%v", err)

	_, err = Resolve(rootfs(t, strings.Repeat(":", maxFileBytes+1), ""), User{Spec: "0"})
	g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue(), "%v", err)
}

// A symlink in the image must not make directories on the host.
func TestCompleteStaysInTheRootfs(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root: the working directory belongs to root")
	}
	for name, link := range map[string]func(host string) string{
		"absolute symlink": func(host string) string { return host },
		"relative symlink": func(host string) string { return strings.Repeat("../", 40) + host[1:] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			host, dir := t.TempDir(), t.TempDir()
			g.Expect(os.Symlink(link(host), filepath.Join(dir, "out"))).To(Succeed())
			spec := &rspec.Spec{Process: &rspec.Process{Cwd: "/out/cwd"}}
			_, err := Complete(spec, dir, self(), []string{"/out/volume", "/out" + strings.Repeat("/..", 40) + "/escape"})
			g.Expect(err).NotTo(HaveOccurred())

			left, err := os.ReadDir(host)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(left).To(BeEmpty(), "the host's directory")
			g.Expect(filepath.Join(dir, host, "cwd")).To(BeADirectory())
			g.Expect(filepath.Join(dir, host, "volume")).To(BeADirectory())
			g.Expect(filepath.Join(dir, "escape")).To(BeADirectory())
		})
	}
}

func TestCompleteRefusesWhatIsNoDirectory(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(path string) error{
		"file":         func(p string) error { return os.WriteFile(p, nil, 0o644) },
		"fifo":         func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"symlink loop": func(p string) error { return os.Symlink("at", p) },
		"symlink to a fifo": func(p string) error {
			return errors.Join(syscall.Mkfifo(p+"-", 0o644), os.Symlink("/at-", p))
		},
	} {
		for _, where := range []string{"/at", "/at/below"} {
			t.Run(name+" "+where, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				dir := t.TempDir()
				g.Expect(plant(filepath.Join(dir, "at"))).To(Succeed())
				spec := &rspec.Spec{Process: &rspec.Process{Cwd: where}}
				within(t, func() {
					_, err := Complete(spec, dir, self(), nil)
					g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
					g.Expect(spec).To(Equal(&rspec.Spec{Process: &rspec.Process{Cwd: where}}), "unchanged")
					_, err = Complete(&rspec.Spec{Process: &rspec.Process{}}, dir, self(), []string{where})
					g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
				})
			})
		}
	}
}

func TestCompleteBoundsDirectories(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	deep := strings.Repeat("/a", maxVolumePath/2)
	dir := t.TempDir()
	_, err := Complete(&rspec.Spec{Process: &rspec.Process{}}, dir, self(), []string{deep})
	g.Expect(err).NotTo(HaveOccurred())
	for name, tc := range map[string]struct {
		cwd     string
		volumes []string
		kind    errdefs.Kind
	}{
		"volumes": {"/", slices.Repeat([]string{"/b"}, maxVolumes+1), errdefs.TooLarge},
		"volume":  {"/", []string{deep + "/a"}, errdefs.TooLarge},
		"cwd":     {strings.Repeat("/a", 100_000), nil, errdefs.InvalidArgument},
	} {
		_, err := Complete(&rspec.Spec{Process: &rspec.Process{Cwd: tc.cwd}}, dir, self(), tc.volumes)
		g.Expect(err).To(HaveOccurred(), name)
		g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), name)
	}
}
