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
	"testing"
	"time"

	runc "github.com/containerd/go-runc"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// childCommand makes the test binary a sandbox child.
const childCommand = "husk-sandbox-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == childCommand {
		if err := Serve(context.Background(), os.Stdin, os.Stdout, spy); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work is what a spy is asked to do.
type work struct {
	Do, Name string
	Ballast  []byte
}

// facts is what a spy saw of where it runs.
type facts map[string]string

// spy reports where it runs, or does what it is asked.
func spy(_ context.Context, w work, report Report) (facts, error) {
	if err := reportAs(w.Do, w.Name, report); err != nil {
		return nil, err
	}
	switch w.Do {
	case "refuse":
		return nil, errdefs.Newf(errdefs.KeyUnavailable, "pull refused", "https://user:secret@kbs.example said no")
	case "die":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(3)
	case "hang":
		sleep := exec.Command("sleep", "1000")
		sleep.Args[0] = w.Name
		if err := sleep.Run(); err != nil {
			return nil, err
		}
	case "talk":
		for {
			_, _ = os.Stdout.WriteString(strings.Repeat("x", 1<<20))
		}
	case "babble":
		return nil, errors.New(strings.Repeat("x", 2*maxMessage))
	case "mutter":
		_, _ = os.Stdout.WriteString(`{"kind":"internal","message":"` + strings.Repeat("x", maxMessage+1) + `"}`)
		os.Exit(0)
	}
	return look(w)
}

func look(w work) (facts, error) {
	seen := facts{
		"environ": strings.Join(os.Environ(), " "), "pid": strconv.Itoa(os.Getpid()), "ballast": strconv.Itoa(len(w.Ballast)),
	}
	for name, file := range map[string]string{
		"resolv": hostResolvConf, "score": "/proc/self/oom_score_adj", "cgroup": "/proc/self/cgroup", "mounts": "/proc/self/mountinfo", "shown": "/proc/self/environ",
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		seen[name] = string(data)
	}
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var links []string
	for _, i := range ifaces {
		links = append(links, i.Name)
	}
	seen["links"] = strings.Join(links, " ")
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	seen["dumpable"] = strconv.Itoa(dumpable)
	return seen, err
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

func run(ctx context.Context, t *testing.T, job Job, w work) (facts, error) {
	t.Helper()
	needRoot(t)
	var seen facts
	job.Command, job.Op = childCommand, "test"
	return seen, Runner{}.Run(ctx, job, w, &seen)
}

func TestRunInThePod(t *testing.T) {
	g := NewWithT(t)
	pod, groups := testPod(t)
	t.Setenv("HTTPS_PROXY", "http://host.example:1")
	t.Setenv("LD_PRELOAD", "")
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	g.Expect(os.WriteFile(resolv, []byte("nameserver 192.0.2.7\n"), 0o600)).To(Succeed())
	host, err := os.ReadFile(hostResolvConf)
	g.Expect(err).NotTo(HaveOccurred())

	seen, err := run(t.Context(), t, Job{
		Name: "c1", OOMScoreAdj: 901, Env: []string{"TMPDIR=/pod/tmp"}, Variables: []string{"HTTPS_PROXY=http://a:s3cret@p:1"},
		Place: Place{NetNS: namedNetNS(t), Cgroup: pod, ResolvConf: resolv},
	}, work{Ballast: make([]byte, 1<<20)})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(seen["ballast"]).To(Equal(strconv.Itoa(1<<20)), "more than fits into a pipe")
	g.Expect(seen["dumpable"]).To(Equal("0"), "keys and layers must not be in a core dump")
	g.Expect(seen["mounts"]).NotTo(ContainSubstring(" shared:"), "what it mounts stays with it")
	own, err := os.ReadFile("/proc/self/mountinfo")
	g.Expect(err).NotTo(HaveOccurred())
	if strings.Contains(string(own), " shared:") {
		g.Expect(seen["mounts"]).To(ContainSubstring(" master:"), "what the host unmounts is let go of")
	}
	g.Expect(seen["links"]).To(Equal("lo"))
	g.Expect(seen["resolv"]).To(Equal("nameserver 192.0.2.7\n"))
	g.Expect(seen["score"]).To(Equal("901\n"))
	g.Expect(seen["cgroup"]).To(ContainSubstring(pod + "/husk-c1\n"))
	g.Expect(seen["pid"]).To(Equal("1"), "a process namespace of its own")
	g.Expect(seen["shown"]).NotTo(ContainSubstring("PROXY"), "what the kernel shows")
	g.Expect(strings.Fields(seen["environ"])).To(ConsistOf("PATH="+childPath, "TMPDIR=/pod/tmp", "HTTPS_PROXY=http://a:s3cret@p:1"))

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
		job  Job
		do   string
		kind errdefs.Kind
		text string
	}{
		"work":       {Job{}, "refuse", errdefs.KeyUnavailable, "pull refused"},
		"death":      {Job{}, "die", errdefs.Internal, "status 3: last words"},
		"no netns":   {Job{Place: Place{NetNS: "/no/such"}}, "", errdefs.Internal, "network namespace"},
		"not netns":  {Job{Place: Place{NetNS: hostResolvConf}}, "", errdefs.Internal, "network namespace"},
		"a device":   {Job{Place: Place{ResolvConf: "/dev/null"}}, "", errdefs.Internal, "no regular file"},
		"no resolv":  {Job{Place: Place{ResolvConf: "/no/such"}}, "", errdefs.Internal, "/no/such"},
		"flood":      {Job{}, "talk", errdefs.Internal, ""},
		"big answer": {Job{MaxAnswer: 10}, "", errdefs.Internal, ""},
		"long error": {Job{}, "babble", errdefs.Internal, "xxx" + ellipsis},
		"too long":   {Job{}, "mutter", errdefs.Internal, "the limit is"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := run(t.Context(), t, tc.job, work{Do: tc.do})
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(err.Error()).NotTo(ContainSubstring("secret"))
		})
	}
}

// killer is a monitor of children that the kernel kills.
type killer struct{ Plain }

func (k killer) Wait(cmd *exec.Cmd, exits chan runc.Exit) (int, error) {
	if err := cmd.Process.Kill(); err != nil {
		return 0, err
	}
	return k.Plain.Wait(cmd, exits)
}

func TestKilledChildIsAMatterOfMemory(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := NewWithT(t)
	var seen facts
	err := Runner{Monitor: killer{}}.Run(t.Context(), Job{Command: childCommand}, work{Do: "hang", Name: "husk-test-killed"}, &seen)
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
		_, err := run(t.Context(), t, Job{Place: Place{NetNS: ns}}, work{})
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
	pod, groups := testPod(t)
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
		_, err := run(ctx, t, Job{Name: "c1", Place: Place{Cgroup: pod}}, work{Do: "hang", Name: marker})
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
			g.Expect(Serve(t.Context(), strings.NewReader(tc.in), &out, spy)).To(Succeed())
			var a answer
			g.Expect(json.Unmarshal(out.Bytes(), &a)).To(Succeed())
			g.Expect(a.Result).To(BeEmpty())
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

	g.Expect((&limitedBuffer{max: 9}).decode(&facts{})).NotTo(Succeed())
}
