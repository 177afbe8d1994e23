package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestPodCgroup(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ path, want string }{
		{"/kubepods/burstable/pod1/crio-abc", "/kubepods/burstable/pod1"},
		{"pod1/crio-abc", "/pod1"},
		{"/crio-abc", "/"},
		{"/a/../../../etc/crio-abc", "/etc"},
		{"kubepods-burstable-pod1.slice:crio:abc", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"},
		{"system.slice:crio:abc", "/system.slice"},
		{":crio:abc", "/"},
		{"-.slice:crio:abc", "/"},
	} {
		t.Run(tc.path, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			g.Expect(PodCgroup(tc.path)).To(Equal(tc.want))
		})
	}
}

func TestPodCgroupRefuses(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"a.slice:b", "a.slice:b:c:d", "a:b:c", "../x.slice:b:c", "a--b.slice:b:c", "-a.slice:b:c"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := PodCgroup(path)
			g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
		})
	}
}

func TestParentCgroup(t *testing.T) {
	t.Parallel()
	for parent, want := range map[string]string{
		"kubepods-burstable-pod1.slice":            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
		"/kubepods.slice/kubepods-burstable.slice": "/kubepods.slice/kubepods-burstable.slice",
		"/kubepods/burstable/pod1":                 "/kubepods/burstable/pod1",
		"pod1":                                     "/pod1",
		"/a/../../b":                               "/b",
		"":                                         "/",
	} {
		g := NewWithT(t)
		g.Expect(ParentCgroup(parent)).To(Equal(want))
	}
	_, err := ParentCgroup("a--b.slice")
	NewWithT(t).Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
}

// needRoot skips a test that changes the machine's namespaces or cgroups.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// testPod names a pod's cgroup, which the test may make.
func testPod(t *testing.T) (pod string, groups func() []string) {
	t.Helper()
	needRoot(t)
	pod = "/husk-test-" + strconv.Itoa(os.Getpid()) + "-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	find := func(pattern string) []string {
		var found []string
		for _, root := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
			dirs, err := filepath.Glob(root + pod + pattern)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, dirs...)
		}
		return found
	}
	t.Cleanup(func() {
		for _, dir := range append(find("/"+groupPrefix+"*"), find("")...) {
			if err := os.Remove(dir); err != nil {
				t.Errorf("left behind: %v", err)
			}
		}
	})
	return pod, func() []string { return find("/" + groupPrefix + "*") }
}

func TestJoinPod(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	pod, groups := testPod(t)
	g.Expect(HasCgroup(pod)).To(BeFalse())
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	g.Expect(cmd.Start()).To(Succeed())
	leave, err := Join(pod+"/husk-c1", cmd.Process.Pid)
	if err != nil && strings.Contains(err.Error(), "read-only") {
		t.Skip("needs a writable cgroup file system")
	}
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(groups()).NotTo(BeEmpty())
	g.Expect(HasCgroup(pod)).To(BeTrue())
	data, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/cgroup")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).To(ContainSubstring(pod + "/husk-c1\n"))
	g.Expect(leave()).NotTo(Succeed(), "the process is still in it")

	// A killed process is waited for.
	go func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	g.Expect(RemoveCgroup(t.Context(), pod+"/crio-abc", "c1")).To(Succeed())
	g.Expect(groups()).To(BeEmpty())
	g.Expect(RemoveCgroup(t.Context(), pod+"/crio-abc", "c1")).To(Succeed(), "none is no error")
}
