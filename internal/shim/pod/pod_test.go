package pod_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func newPod(t *testing.T) pod.Pod {
	t.Helper()
	p, err := pod.New(t.TempDir(), strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Create(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestIDs(t *testing.T) {
	t.Parallel()
	for id, ok := range map[string]bool{
		strings.Repeat("a", 64): true, "pod_1.x-y": true,
		"": false, ".": false, "..": false, "../x": false, "a/b": false, ".hidden": false, "a\x00b": false, "a b": false,
		strings.Repeat("a", 65): false,
	} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			g.Expect(pod.ValidID(id) == nil).To(Equal(ok))
			_, err := pod.New("", id)
			g.Expect(err == nil).To(Equal(ok))
		})
	}
}

// The kernel takes 107 bytes for a unix socket's path.
func TestSocketPathsFit(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p, err := pod.New("", strings.Repeat("a", 64))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(len(p.Socket())).To(BeNumerically("<=", 106))
	g.Expect(len(p.TaskSocket())).To(BeNumerically("<=", 106))
	g.Expect(p.Address()).To(Equal("unix:///run/husk/pods/" + p.ID() + "/shim.sock"))
}

func TestRecords(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	want := pod.Record{ID: "c1", Bundle: "/b", Runtime: "/usr/bin/runc", RuntimeRoot: "/r", Stdout: "/f", Terminal: true}
	g.Expect(p.Put(want)).To(Succeed())
	g.Expect(p.Put(pod.Record{ID: "../c2"})).NotTo(Succeed())
	g.Expect(p.Get("c1")).To(Equal(want))
	g.Expect(p.List()).To(ConsistOf(want))

	at := time.Now().UTC().Round(0)
	r, err := p.Update("c1", func(r pod.Record) pod.Record { return r.Exited(at, 3) })
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r.ExitStatus).To(Equal(uint32(3)))
	g.Expect(r.Exited(time.Now(), pod.KilledStatus).ExitStatus).To(Equal(uint32(3)), "an exit is final")
	g.Expect(p.Get("c1")).To(Equal(r))

	g.Expect(p.Drop("c1")).To(Succeed())
	g.Expect(p.Drop("c1")).To(Succeed())
	_, err = p.Get("c1")
	g.Expect(errdefs.Is(err, errdefs.NotFound)).To(BeTrue())
	_, err = p.Update("c1", func(r pod.Record) pod.Record { return r })
	g.Expect(errdefs.Is(err, errdefs.NotFound)).To(BeTrue(), "a late change does not bring it back")
	g.Expect(p.List()).To(BeEmpty())
}

func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	dir := filepath.Join(p.Dir(), "containers")
	g.Expect(os.WriteFile(filepath.Join(dir, ".c0.json.123"), []byte("half"), 0o600)).To(Succeed())
	g.Expect(p.List()).To(BeEmpty(), "a killed write is no record")
	g.Expect(os.WriteFile(filepath.Join(dir, "c1.json"), []byte("{"), 0o600)).To(Succeed())
	_, err := p.List()
	g.Expect(err).To(MatchError(ContainSubstring("c1")))
	g.Expect(os.WriteFile(filepath.Join(dir, "c1.json"), make([]byte, 1<<20), 0o600)).To(Succeed())
	_, err = p.Get("c1")
	g.Expect(err).To(MatchError(ContainSubstring("more than")))
}

func TestConcurrentUpdates(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	g.Expect(p.Put(pod.Record{ID: "c1"})).To(Succeed())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := p.Update("c1", func(r pod.Record) pod.Record { r.Pid++; return r })
			g.Expect(err).NotTo(HaveOccurred())
		})
	}
	wg.Wait()
	r, err := p.Get("c1")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r.Pid).To(Equal(uint32(20)))
}

func TestRemove(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	canary := filepath.Join(p.Store(), "layer")
	g.Expect(os.WriteFile(canary, nil, 0o600)).To(Succeed())
	g.Expect(p.Remove()).NotTo(Succeed(), "a store in use is not deleted")
	g.Expect(canary).To(BeAnExistingFile())
	g.Expect(os.Remove(canary)).To(Succeed())
	g.Expect(p.Remove()).To(Succeed())
	g.Expect(p.Dir()).NotTo(BeADirectory())
	g.Expect(p.Remove()).To(Succeed())
}

func TestAnnounceExit(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	r := pod.Record{ID: "c1"}
	g.Expect(r.AnnounceExit()).To(Succeed())
	r.ExitsDir = filepath.Join(dir, "missing")
	g.Expect(r.AnnounceExit()).To(Succeed())
	r.ExitsDir = dir
	g.Expect(r.AnnounceExit()).To(Succeed())
	g.Expect(filepath.Join(dir, "c1")).To(BeAnExistingFile())
}

func TestDestroyNamesTheContainer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	root := filepath.Join(t.TempDir(), "root dir")
	g.Expect(os.Mkdir(root, 0o700)).To(Succeed())
	script := filepath.Join(t.TempDir(), "runtime")
	g.Expect(os.WriteFile(script, []byte("#!/bin/sh\necho $* >$0.args; echo no such thing >&2; exit 1\n"), 0o700)).To(Succeed())
	r := pod.Record{ID: "c1", Runtime: script, RuntimeRoot: root}
	g.Expect(r.Destroy(t.Context())).To(MatchError(And(ContainSubstring("c1"), ContainSubstring("no such thing"))))
	g.Expect(os.ReadFile(script + ".args")).To(Equal([]byte("--root " + root + " delete --force c1\n")))
}

func TestImagesOfARecord(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	image := func(name string) pod.Image {
		i := pod.Image{Reference: name, PulledAt: time.Now().UTC().Round(0)}
		hex := strings.Repeat("a", 64)
		g.Expect(i.ManifestDigest.UnmarshalText([]byte("sha256:" + hex))).To(Succeed())
		g.Expect(i.ImageID.UnmarshalText([]byte(hex))).To(Succeed())
		return i
	}
	main, first, second := image("main"), image("first"), image("second")
	r := pod.Record{ID: "c1"}.On(main).On(first)
	g.Expect(p.Put(r.On(second))).To(Succeed())
	back, err := p.Get("c1")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(back.Image).To(Equal(&main))
	g.Expect(back.ImageMounts).To(Equal([]pod.Image{first, second}))
	g.Expect(r.ImageMounts).To(HaveLen(1), "a copy")
}

// The groups of pulls that were at work when a shim died go with its sandbox.
// A runtime would make its directory again, with all above it, for a container that went
// with it.
func TestDestroyMakesNoDirectory(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "runtime")
	g.Expect(os.WriteFile(script, []byte("#!/bin/sh\nexec mkdir -p \"$2\"\n"), 0o700)).To(Succeed())
	r := pod.Record{ID: "c1", Runtime: script, RuntimeRoot: filepath.Join(dir, "state", "runc")}
	g.Expect(r.Destroy(t.Context())).To(Succeed())
	g.Expect(filepath.Join(dir, "state")).NotTo(BeADirectory())
}

// runsc leaves processes behind that hold its output open.
func TestDestroyDoesNotWaitForWhatARuntimeLeaves(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "runtime")
	g.Expect(os.WriteFile(script, []byte("#!/bin/sh\nsleep 60 &\necho $! >"+dir+"/left\n"), 0o700)).To(Succeed())
	begin := time.Now()
	g.Expect(pod.Record{ID: "c1", Runtime: script, RuntimeRoot: dir}.Destroy(t.Context())).To(Succeed())
	g.Expect(time.Since(begin)).To(BeNumerically("<", 30*time.Second))
	left, err := os.ReadFile(filepath.Join(dir, "left"))
	g.Expect(err).NotTo(HaveOccurred())
	pid, err := strconv.Atoi(strings.TrimSpace(string(left)))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(syscall.Kill(pid, syscall.SIGKILL)).To(Succeed())
}

func TestDestroyRemovesTheGroupsOfPulls(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	id := strings.Repeat("b", 32)
	parent := "/husk-test-destroy-" + strconv.Itoa(os.Getpid())
	for slot := range pod.MaxPulls {
		err := sandbox.MakeCgroup(parent + "/husk-" + pod.PullName(id, slot))
		if err != nil && strings.Contains(err.Error(), "read-only") {
			t.Skip("needs a writable cgroup file system")
		}
		g.Expect(err).NotTo(HaveOccurred())
	}
	g.Expect(pod.Record{ID: id, Runtime: "/bin/true", Cgroup: parent + "/crio-x"}.Destroy(t.Context())).To(Succeed())
	g.Expect(sandbox.HasCgroup(parent+"/husk-"+pod.PullName(id, 0))).To(BeTrue(), "not those of the pod's other containers")
	g.Expect(pod.Record{ID: id, Sandbox: true, Runtime: "/bin/true", Cgroup: parent + "/crio-x"}.Destroy(t.Context())).To(Succeed())
	for slot := range pod.MaxPulls {
		g.Expect(sandbox.HasCgroup(parent + "/husk-" + pod.PullName(id, slot))).To(BeFalse())
	}
	// It is named as a pull's own is, so that it can be removed in the same way.
	g.Expect(sandbox.RemoveCgroup(t.Context(), "/crio-x", strings.TrimPrefix(parent, "/husk-"))).To(Succeed())
}

func TestReadFileFailsInsteadOfTruncating(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	name := filepath.Join(t.TempDir(), "f")
	g.Expect(os.WriteFile(name, []byte("12345"), 0o600)).To(Succeed())
	g.Expect(pod.ReadFile(name, 5)).To(Equal([]byte("12345")))
	_, err := pod.ReadFile(name, 4)
	g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue())
}

func TestWriteFileReplaces(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two"} {
		g.Expect(pod.WriteFile(name, []byte(content), 0o640)).To(Succeed())
		g.Expect(os.ReadFile(name)).To(Equal([]byte(content)))
	}
	g.Expect(pod.WriteFile(filepath.Join(dir, "no", "f"), nil, 0o600)).NotTo(Succeed())
	entries, err := os.ReadDir(dir)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(entries).To(HaveLen(1), "no temporary file is left")
}
