package bundle

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/cdhclient"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestMain(m *testing.M) { os.Exit(cdhclient.Isolate(m.Run)) }

// place is a keeper with two layers.
type place struct {
	*Keeper
	dir    string
	layers Layers
}

func newPlace(t *testing.T) place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	g := NewWithT(t)
	p := place{dir: t.TempDir()}
	for _, layer := range []string{"low", "high"} {
		dir := filepath.Join(p.dir, layer)
		g.Expect(os.Mkdir(dir, 0o755)).To(Succeed())
		g.Expect(os.WriteFile(filepath.Join(dir, layer), []byte(layer), 0o644)).To(Succeed())
		g.Expect(os.WriteFile(filepath.Join(dir, "both"), []byte(layer), 0o644)).To(Succeed())
		p.layers.Dirs = append(p.layers.Dirs, dir)
	}
	g.Expect(os.Chmod(p.layers.Dirs[0], 0o711)).To(Succeed())
	p.layers.RootDir = p.layers.Dirs[0]
	p.reopen(t)
	return p
}

// reopen is another process that starts.
func (p *place) reopen(t *testing.T) {
	t.Helper()
	k, err := Open(filepath.Join(p.dir, "state"), filepath.Join(p.dir, "parent"))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	p.Keeper = k
}

func (p *place) bundle(name string) string { return filepath.Join(p.dir, "parent", name) }

func (p *place) make(t *testing.T, name string) error {
	t.Helper()
	return p.Make(t.Context(), p.bundle(name), p.layers, func(string) ([]byte, error) { return []byte("{}"), nil })
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (p *place) expectNothing(t *testing.T) {
	t.Helper()
	g := NewWithT(t)
	g.Expect(list(t, filepath.Join(p.dir, "parent"))).To(BeEmpty())
	g.Expect(list(t, filepath.Join(p.dir, "state"))).To(Equal([]string{"lock"}))
	mounts, err := readMounts("/proc/self/mountinfo")
	g.Expect(err).NotTo(HaveOccurred())
	for upper := range mounts {
		g.Expect(upper).NotTo(HavePrefix(p.dir))
	}
}

func TestMakeAndRemove(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	g := NewWithT(t)
	var seen string
	err := p.Make(t.Context(), p.bundle("c"), p.layers, func(rootfs string) ([]byte, error) {
		data, err := os.ReadFile(rootfs + "/both")
		seen = string(data)
		return []byte("the config"), err
	})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(seen).To(Equal("high"))
	g.Expect(os.ReadFile(p.bundle("c/config.json"))).To(BeEquivalentTo("the config"))
	g.Expect(os.ReadFile(p.bundle("c/rootfs/low"))).To(BeEquivalentTo("low"))
	info, err := os.Stat(p.bundle("c/rootfs"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o711)))
	g.Expect(errdefs.KindOf(p.make(t, "c"))).To(Equal(errdefs.InUse))
	g.Expect(p.Remove(t.Context(), p.bundle("c"))).To(Succeed())
	g.Expect(p.Remove(t.Context(), p.bundle("c"))).To(Succeed())
	p.expectNothing(t)
}

func TestManyLayersAndNone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	g := NewWithT(t)
	for range 200 { // their full paths do not fit into a page
		dir, err := os.MkdirTemp(p.dir, "a-layer-with-a-long-name-")
		g.Expect(err).NotTo(HaveOccurred())
		p.layers.Dirs = append(p.layers.Dirs, dir)
	}
	g.Expect(p.make(t, "many")).To(Succeed())
	g.Expect(os.ReadFile(p.bundle("many/rootfs/low"))).To(BeEquivalentTo("low"))
	p.layers = Layers{}
	g.Expect(p.make(t, "none")).To(Succeed())
	g.Expect(list(t, p.bundle("none/rootfs"))).To(BeEmpty())
	g.Expect(p.Release(t.Context())).To(Succeed())
}

func TestFailureTakesEverythingBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	g := NewWithT(t)
	no := errors.New("no")
	err := p.Make(t.Context(), p.bundle("c"), p.layers, func(string) ([]byte, error) { return nil, no })
	g.Expect(err).To(MatchError(no))
	p.expectNothing(t)

	bad := p.layers
	bad.Dirs = []string{"/nonexistent"}
	g.Expect(p.Make(t.Context(), p.bundle("c"), bad, nil)).NotTo(Succeed())
	p.expectNothing(t)

	// What was there before stays.
	g.Expect(os.MkdirAll(p.bundle("c/rootfs"), 0o700)).To(Succeed())
	g.Expect(os.WriteFile(p.bundle("c/rootfs/mine"), nil, 0o600)).To(Succeed())
	g.Expect(p.Make(t.Context(), p.bundle("c"), p.layers, func(string) ([]byte, error) { return nil, no })).NotTo(Succeed())
	g.Expect(list(t, p.bundle("c"))).To(Equal([]string{"rootfs"}))
	g.Expect(list(t, p.bundle("c/rootfs"))).To(Equal([]string{"mine"}))
	g.Expect(list(t, filepath.Join(p.dir, "state"))).To(Equal([]string{"lock"}))
}

// TestCrash leaves the bundle as a process does that dies in the middle.
func TestCrash(t *testing.T) {
	t.Parallel()
	for name, crash := range map[string]func(g Gomega, p *place, s state){
		"before the end": func(g Gomega, _ *place, s state) { g.Expect(os.Remove(s.path(completeFile))).To(Succeed()) },
		"before the config": func(g Gomega, p *place, s state) {
			g.Expect(os.Remove(s.path(completeFile))).To(Succeed())
			g.Expect(os.Rename(p.bundle("c/config.json"), p.bundle("c/"+tempConfig))).To(Succeed())
		},
		"before the mount": func(g Gomega, p *place, s state) {
			g.Expect(os.Remove(s.path(completeFile))).To(Succeed())
			g.Expect(os.Remove(p.bundle("c/config.json"))).To(Succeed())
			g.Expect(s.unmount()).To(Succeed())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			g := NewWithT(t)
			g.Expect(p.make(t, "c")).To(Succeed())
			g.Expect(p.make(t, "whole")).To(Succeed())
			crash(g, &p, p.state(p.bundle("c")))
			p.reopen(t)
			g.Expect(p.Sweep(t.Context())).To(Succeed())
			g.Expect(list(t, filepath.Join(p.dir, "parent"))).To(Equal([]string{"whole"}))
			g.Expect(os.ReadFile(p.bundle("whole/rootfs/low"))).To(BeEquivalentTo("low"), "a whole one works on")
			g.Expect(p.make(t, "c")).To(Succeed())
			g.Expect(p.Release(t.Context())).To(Succeed())
			p.expectNothing(t)
		})
	}
}

// TestContainerIsGone is what the agent does at the end of a container.
func TestContainerIsGone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	g := NewWithT(t)
	g.Expect(p.make(t, "c")).To(Succeed())
	g.Expect(unix.Unmount(p.bundle("c/rootfs"), 0)).To(Succeed())
	g.Expect(os.RemoveAll(p.bundle("c"))).To(Succeed())
	g.Expect(p.make(t, "c")).To(Succeed(), "the same name again")
	g.Expect(p.Release(t.Context())).To(Succeed())
	p.expectNothing(t)
}

// TestContainerInAnotherNamespace: a container that runs keeps its root file system, even
// though it is mounted here no more.
func TestContainerInAnotherNamespace(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	g := NewWithT(t)
	g.Expect(p.make(t, "c")).To(Succeed())
	cmd := exec.CommandContext(t.Context(), "cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(cmd.Start()).To(Succeed())
	upper := p.state(p.bundle("c")).path("upper")
	g.Expect(p.Release(t.Context())).To(Succeed())
	g.Expect(os.ReadFile(p.bundle("c/rootfs/low"))).To(BeEquivalentTo("low"))
	g.Expect(unix.Unmount(p.bundle("c/rootfs"), 0)).To(Succeed())
	g.Expect(p.Sweep(t.Context())).To(Succeed())
	g.Expect(upper).To(BeADirectory(), "the container writes there")
	// Not the directory: the kernel unmounts what is mounted at a removed one, everywhere.
	g.Expect(os.Remove(p.bundle("c/config.json"))).To(Succeed())
	err = p.make(t, "c")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse), "%v", err)
	g.Expect(in.Close()).To(Succeed())
	g.Expect(cmd.Wait()).To(Succeed())
	g.Expect(p.make(t, "c")).To(Succeed())
	g.Expect(p.Release(t.Context())).To(Succeed())
	g.Expect(os.RemoveAll(p.bundle("c"))).To(Succeed()) // it was there before the second
	p.expectNothing(t)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	g := NewWithT(t)
	for _, dir := range []string{"relative", "/with:colon", "/with,comma", "/not/../clean"} {
		_, err := Open(dir, filepath.Join(p.dir, "parent"))
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), dir)
	}
	g.Expect(p.Check(p.bundle("not-there"))).To(Succeed())
	g.Expect(errdefs.KindOf(p.Check(p.dir))).To(Equal(errdefs.InvalidArgument))
	// Something that is mounted at the rootfs is not hidden by another mount.
	g.Expect(os.MkdirAll(p.bundle("m/rootfs"), 0o700)).To(Succeed())
	g.Expect(unix.Mount("tmpfs", p.bundle("m/rootfs"), "tmpfs", 0, "")).To(Succeed())
	g.Expect(errdefs.KindOf(p.make(t, "m"))).To(Equal(errdefs.InUse))
	g.Expect(unix.Unmount(p.bundle("m/rootfs"), 0)).To(Succeed())
	// Too many.
	for i := range maxBundles {
		g.Expect(os.Mkdir(filepath.Join(p.dir, "state", "x"+string(rune('a'+i%26))+string(rune('a'+i/26))), 0o700)).To(Succeed())
	}
	err := p.state(p.bundle("m")).begin(record{})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
}

func TestLockEndsWithTheContext(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	g := NewWithT(t)
	unlock, err := p.lock(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.Expect(errdefs.KindOf(p.Sweep(ctx))).To(Equal(errdefs.Canceled))
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(unescape(`/a\040b\134c`)).To(Equal(`/a b\c`))
	g.Expect(unescape(`/a\9zz\04`)).To(Equal(`/a\9zz\04`))
}
