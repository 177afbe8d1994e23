package bundlegen

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// bundleSpec is any valid spec.
func bundleSpec(t *testing.T) *rspec.Spec {
	t.Helper()
	spec, err := SandboxSpec([]string{"/pause"}, SpecOptions{})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return spec
}

// tree lists what is below dir, with modes.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		rel, relErr := filepath.Rel(dir, path)
		found = append(found, fmt.Sprintf("%s %s", info.Mode(), rel))
		return errors.Join(err, relErr)
	})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return found
}

// expectBundle fails unless dir has spec, an empty rootfs and nothing else.
func expectBundle(t *testing.T, dir string, spec *rspec.Spec) {
	t.Helper()
	g := NewWithT(t)
	g.Expect(tree(t, dir)).To(Equal([]string{"-rw------- config.json", "drwxr-xr-x rootfs"}))
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	g.Expect(err).NotTo(HaveOccurred())
	var read *rspec.Spec
	g.Expect(json.Unmarshal(data, &read)).To(Succeed())
	want, err := json.Marshal(spec)
	g.Expect(err).NotTo(HaveOccurred())
	got, err := json.Marshal(read)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got).To(MatchJSON(want))
}

func TestWriteBundle(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	spec := bundleSpec(t)
	dir := filepath.Join(t.TempDir(), "new")
	g.Expect(WriteBundle(dir, spec)).To(Succeed())
	expectBundle(t, dir, spec)
	info, err := os.Stat(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o755)))

	dir = t.TempDir()
	g.Expect(os.Chmod(dir, 0o711)).To(Succeed())
	g.Expect(WriteBundle(dir, spec)).To(Succeed())
	expectBundle(t, dir, spec)
	info, err = os.Stat(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o711)), "of a directory that was there")

	link := filepath.Join(t.TempDir(), "link")
	g.Expect(os.Symlink(filepath.Join(t.TempDir(), "."), link)).To(Succeed())
	g.Expect(WriteBundle(link, spec)).To(Succeed(), "a directory by another name")
	expectBundle(t, link+"/", spec)
}

// The umask of the process is everybody's: not parallel.
func TestWriteBundleWhateverTheUmask(t *testing.T) {
	spec := bundleSpec(t)
	dir := filepath.Join(t.TempDir(), "new")
	before := syscall.Umask(0o777)
	err := WriteBundle(dir, spec)
	syscall.Umask(before)
	g := NewWithT(t)
	g.Expect(err).NotTo(HaveOccurred())
	expectBundle(t, dir, spec)
	info, err := os.Stat(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o755)))
}

func TestWriteBundleRefuses(t *testing.T) {
	t.Parallel()
	mkdir := func(names ...string) func(string) error {
		return func(dir string) error {
			return os.MkdirAll(filepath.Join(append([]string{dir}, names...)...), 0o755)
		}
	}
	file := func(name string) func(string) error {
		return func(dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o644))
		}
	}
	for name, plant := range map[string]func(dir string) error{
		"a bundle":              file("config.json"),
		"a file":                file("x"),
		"a hidden file":         file(".x"),
		"a rootfs with content": mkdir("rootfs", "etc"),
		"a rootfs that is a file": func(dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "rootfs"), nil, 0o644))
		},
		"a rootfs that is a link": func(dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o755), os.Symlink("/", filepath.Join(dir, "rootfs")))
		},
		"a partial that is a directory": mkdir(partialName),
		"a file in its place":           func(dir string) error { return os.WriteFile(dir, []byte("mine"), 0o644) },
		"a FIFO in its place":           func(dir string) error { return syscall.Mkfifo(dir, 0o600) },
		"a link to nothing":             func(dir string) error { return os.Symlink("nothing", dir) },
		"a link to itself":              func(dir string) error { return os.Symlink(filepath.Base(dir), dir) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			parent := t.TempDir()
			dir := filepath.Join(parent, "bundle")
			g.Expect(plant(dir)).To(Succeed())
			before := tree(t, parent)
			err := WriteBundle(dir, bundleSpec(t))
			g.Expect(err).To(MatchError(ContainSubstring(dir)))
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), err.Error())
			g.Expect(tree(t, parent)).To(Equal(before), "nothing changed")
		})
	}
	g := NewWithT(t)
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "no", "parent"), filepath.Join(dir, strings.Repeat("x", 300)), ""} {
		err := WriteBundle(path, bundleSpec(t))
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	}
	err := WriteBundle(filepath.Join(dir, "new"), &rspec.Spec{})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	g.Expect(tree(t, dir)).To(BeEmpty(), "an invalid spec is not written")
}

// A writer that is killed between any two steps has left no config.json, or the whole
// bundle; in the first case the next writer goes on as if nothing were there.
func TestWriteBundleKilled(t *testing.T) {
	t.Parallel()
	spec := bundleSpec(t)
	for _, exists := range []bool{false, true} {
		for done := 0; ; done++ {
			g := NewWithT(t)
			dir := filepath.Join(t.TempDir(), "bundle")
			if exists {
				g.Expect(os.Mkdir(dir, 0o700)).To(Succeed())
			}
			w, err := openBundle(dir)
			g.Expect(err).NotTo(HaveOccurred())
			steps := w.steps(spec)
			if done > len(steps) {
				g.Expect(w.close(false)).To(Succeed())
				break
			}
			for _, step := range steps[:done] {
				g.Expect(step()).To(Succeed())
			}
			// What the kernel does when the process is gone; nothing is undone.
			g.Expect(errors.Join(w.lock.Close(), w.root.Close())).To(Succeed())

			if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
				expectBundle(t, dir, spec)
				continue
			}
			g.Expect(WriteBundle(dir, spec)).To(Succeed(), "after %d steps", done)
			expectBundle(t, dir, spec)
		}
	}
}

// A step that fails takes back all that was made before it.
func TestWriteBundleUndoes(t *testing.T) {
	t.Parallel()
	spec := bundleSpec(t)
	for _, exists := range []bool{false, true} {
		for done := range 5 {
			g := NewWithT(t)
			parent := t.TempDir()
			dir := filepath.Join(parent, "bundle")
			if exists {
				g.Expect(os.Mkdir(dir, 0o700)).To(Succeed())
			}
			before := tree(t, parent)
			w, err := openBundle(dir)
			g.Expect(err).NotTo(HaveOccurred())
			for _, step := range w.steps(spec)[:done] {
				g.Expect(step()).To(Succeed())
			}
			g.Expect(w.close(true)).To(Succeed())
			g.Expect(tree(t, parent)).To(Equal(before), "after %d steps", done)
		}
	}
}

// A file system without room for the config, which is one without room for its rest.
func TestWriteBundleOnAFullDisk(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip("needs root: mount: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	spec := bundleSpec(t)
	spec.Annotations = map[string]string{"org.example.big": strings.Repeat("x", 64<<10)}
	for _, path := range []string{filepath.Join(dir, "bundle"), dir} {
		err := WriteBundle(path, spec)
		g.Expect(err).To(MatchError(syscall.ENOSPC))
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal))
		g.Expect(tree(t, dir)).To(BeEmpty())
	}
	spec.Annotations = nil
	spec.Linux.Seccomp = nil
	g.Expect(WriteBundle(dir, spec)).To(Succeed(), "room for a smaller one")
}

// Of writers at once one writes, and the others leave its bundle alone.
func TestWriteBundleTogether(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := filepath.Join(t.TempDir(), "bundle")
	spec := bundleSpec(t)
	var done atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := WriteBundle(dir, spec)
			if err == nil {
				done.Add(1)
			} else if errdefs.KindOf(err) != errdefs.InvalidArgument {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	g.Expect(done.Load()).To(Equal(int32(1)))
	expectBundle(t, dir, spec)
}
