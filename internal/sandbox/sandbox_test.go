package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runc "github.com/containerd/go-runc"
	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestMain makes the test binary a sandbox child too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ChildCommand {
		if err := Child(context.Background(), os.Stdin, os.Stdout, spy{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// spy is a puller that reports where it runs, as environment of an image config, or
// does what the reference says.
type spy struct{}

func (spy) Pull(_ context.Context, req PullRequest) (Image, error) {
	switch req.Reference {
	case "refused":
		return Image{}, errdefs.Newf(errdefs.KeyUnavailable, "pull refused", "https://user:secret@kbs.example said no")
	case "die":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(3)
	case "hang":
		sleep := exec.Command("sleep", "1000")
		sleep.Args[0] = req.StoreDir
		if err := sleep.Run(); err != nil {
			return Image{}, err
		}
	case "talk":
		for {
			_, _ = os.Stdout.WriteString(strings.Repeat("x", 1<<20))
		}
	}
	resolv, err := os.ReadFile(hostResolvConf)
	if err != nil {
		return Image{}, err
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return Image{}, err
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Image{}, err
	}
	var links []string
	ifaces, err := net.Interfaces()
	if err != nil {
		return Image{}, err
	}
	for _, i := range ifaces {
		links = append(links, i.Name)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return Image{}, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Image{}, err
	}
	facts := map[string]string{
		"dumpable": strconv.Itoa(dumpable), "mounts": string(mounts),
		"resolv": string(resolv), "score": string(score), "cgroup": string(groups),
		"links": strings.Join(links, " "), "environ": strings.Join(os.Environ(), " "), "pid": strconv.Itoa(os.Getpid()),
	}
	return Image{ManifestDigest: "d", LayerDirs: []string{"/a", "/b"}, Config: imgspec.Image{Config: imgspec.ImageConfig{Labels: facts}}}, nil
}

// plain is a monitor for a process that reaps its own children.
type plain struct{}

func (plain) Start(cmd *exec.Cmd) (chan runc.Exit, error) { return nil, cmd.Start() }

func (plain) Wait(cmd *exec.Cmd, _ chan runc.Exit) (int, error) {
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// namedNetNS makes a network namespace of its own and returns its path.
func namedNetNS(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

func run(ctx context.Context, t *testing.T, req Request) (Image, error) {
	t.Helper()
	needRoot(t)
	return Runner{Monitor: plain{}}.Run(ctx, req)
}

func TestRunInThePod(t *testing.T) {
	g := NewWithT(t)
	cgroupsPath, groups := testPod(t)
	t.Setenv("HTTPS_PROXY", "http://host.example:1")
	t.Setenv("LD_PRELOAD", "")
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	g.Expect(os.WriteFile(resolv, []byte("nameserver 192.0.2.7\n"), 0o600)).To(Succeed())
	host, err := os.ReadFile(hostResolvConf)
	g.Expect(err).NotTo(HaveOccurred())

	image, err := run(t.Context(), t, Request{
		Name: "c1", NetNS: namedNetNS(t), Cgroup: cgroupsPath, OOMScoreAdj: 901,
		Pull: PullRequest{Reference: "r", ResolvConf: resolv, TempDir: "/pod/tmp"},
	})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(image.LayerDirs).To(Equal([]string{"/a", "/b"}))
	facts := image.Config.Config.Labels
	g.Expect(facts["dumpable"]).To(Equal("0"), "keys and layers must not be in a core dump")
	g.Expect(facts["mounts"]).NotTo(ContainSubstring(" shared:"), "what it mounts stays with it")
	own, err := os.ReadFile("/proc/self/mountinfo")
	g.Expect(err).NotTo(HaveOccurred())
	if strings.Contains(string(own), " shared:") {
		g.Expect(facts["mounts"]).To(ContainSubstring(" master:"), "what the host unmounts is let go of")
	}
	g.Expect(facts["links"]).To(Equal("lo"))
	g.Expect(facts["resolv"]).To(Equal("nameserver 192.0.2.7\n"))
	g.Expect(facts["score"]).To(Equal("901\n"))
	g.Expect(facts["cgroup"]).To(ContainSubstring(filepath.Dir(cgroupsPath) + "/husk-c1\n"))
	g.Expect(facts["pid"]).To(Equal("1"), "a process namespace of its own")
	g.Expect(facts["environ"]).NotTo(ContainSubstring("PROXY"))
	g.Expect(strings.Fields(facts["environ"])).To(ConsistOf("PATH="+childPath, "HOME=/nonexistent", "TMPDIR=/pod/tmp"))

	g.Expect(groups()).To(BeEmpty(), "the child's cgroup is gone")
	after, err := os.ReadFile(hostResolvConf)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(after).To(Equal(host), "the host's resolv.conf is as it was")
	mounts, err := os.ReadFile("/proc/self/mounts")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(mounts)).NotTo(ContainSubstring(" " + hostResolvConf + " "))
}

func TestErrorsKeepTheirKind(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		req  Request
		kind errdefs.Kind
		text string
	}{
		"puller":     {Request{Pull: PullRequest{Reference: "refused"}}, errdefs.KeyUnavailable, "pull refused"},
		"death":      {Request{Pull: PullRequest{Reference: "die"}}, errdefs.Internal, "status 3: last words"},
		"no netns":   {Request{NetNS: "/no/such", Pull: PullRequest{Reference: "r"}}, errdefs.Internal, "network namespace"},
		"no resolv":  {Request{Pull: PullRequest{Reference: "r", ResolvConf: "/no/such"}}, errdefs.Internal, "/no/such"},
		"bad cgroup": {Request{Cgroup: "a:b", Pull: PullRequest{Reference: "r"}}, errdefs.Internal, "slice:prefix:name"},
		"flood":      {Request{Pull: PullRequest{Reference: "talk"}}, errdefs.Internal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := run(t.Context(), t, tc.req)
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(err.Error()).NotTo(ContainSubstring("secret"))
		})
	}
}

// killer is a monitor of children that the kernel kills.
type killer struct{ plain }

func (k killer) Wait(cmd *exec.Cmd, exits chan runc.Exit) (int, error) {
	if err := cmd.Process.Kill(); err != nil {
		return 0, err
	}
	_, err := k.plain.Wait(cmd, exits)
	return 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()), err // as containerd's reaper has it
}

func TestKilledChildIsAMatterOfMemory(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	_, err := Runner{Monitor: killer{}}.Run(t.Context(), Request{Pull: PullRequest{Reference: "hang", StoreDir: "husk-test-killed"}})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("memory limit of the pod")))
}

// A thread that ends takes with it what it has started, such as the OCI runtime of
// another container.
func TestNoThreadEnds(t *testing.T) {
	g := NewWithT(t)
	threads := func() map[string]string { // and the network namespace of each
		dirs, err := filepath.Glob("/proc/self/task/*/ns/net")
		g.Expect(err).NotTo(HaveOccurred())
		all := map[string]string{}
		for _, dir := range dirs {
			if ns, err := os.Readlink(dir); err == nil {
				all[dir] = ns
			}
		}
		return all
	}
	ns := namedNetNS(t) // whose own thread may end
	time.Sleep(10 * time.Millisecond)
	for range 8 {
		before := threads()
		_, err := run(t.Context(), t, Request{NetNS: ns, Pull: PullRequest{Reference: "r"}})
		g.Expect(err).NotTo(HaveOccurred())
		time.Sleep(10 * time.Millisecond)
		after := threads()
		for thread, where := range before {
			g.Expect(after).To(HaveKeyWithValue(thread, where))
		}
	}
}

func TestCancelKillsTheChildAndItsChildren(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	cgroupsPath, groups := testPod(t)
	marker := "husk-test-sleeper-" + strconv.Itoa(os.Getpid())
	sleeping := func() bool {
		procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
		g.Expect(err).NotTo(HaveOccurred())
		for _, p := range procs {
			if data, err := os.ReadFile(p); err == nil && bytes.HasPrefix(data, []byte(marker)) {
				return true
			}
		}
		return false
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := run(ctx, t, Request{Name: "c1", Cgroup: cgroupsPath, Pull: PullRequest{Reference: "hang", StoreDir: marker}})
		done <- err
	}()
	g.Eventually(sleeping, 5*time.Second).Should(BeTrue())
	cancel()
	var err error
	g.Eventually(done, 5*time.Second).Should(Receive(&err))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled))
	g.Expect(sleeping()).To(BeFalse())
	g.Expect(groups()).To(BeEmpty())
}

func TestChildRefusesBadRequests(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in   string
		kind errdefs.Kind
	}{
		"nothing":   {"", errdefs.InvalidArgument},
		"not JSON":  {"pull it", errdefs.InvalidArgument},
		"too large": {strings.Repeat(" ", maxRequest+1), errdefs.TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			var out bytes.Buffer
			g.Expect(Child(t.Context(), strings.NewReader(tc.in), &out, spy{})).To(Succeed())
			var a answer
			g.Expect(json.Unmarshal(out.Bytes(), &a)).To(Succeed())
			g.Expect(a.Image).To(BeNil())
			g.Expect(a.Kind).To(Equal(tc.kind.String()))
		})
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	b := &limitedBuffer{max: 4}
	_, err := b.Write([]byte("1234"))
	g.Expect(err).NotTo(HaveOccurred())
	_, err = b.Write([]byte("5"))
	g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue())

	l := &tail{max: 4}
	for range 3 {
		_, err = l.Write([]byte("abc"))
		g.Expect(err).NotTo(HaveOccurred())
	}
	g.Expect(l.String()).To(Equal("cabc"))

	_, err = (&limitedBuffer{max: 9}).answer()
	g.Expect(err).To(HaveOccurred())
}
