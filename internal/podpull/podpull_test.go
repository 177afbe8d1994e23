package podpull

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// TestMain makes the test binary a child too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ChildCommand {
		if err := RunChild(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	password = "hunter2-secret"
	proxy    = "http://proxy-user:proxy-secret@127.0.0.1:1"
)

// newPuller makes a puller whose node accepts every image, and its store.
func newPuller(t *testing.T) (*Puller, *storetest.Memory) {
	t.Helper()
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	config := registry.Config{
		PolicyPath: policy, RegistriesConf: "/dev/null", RegistriesConfDir: t.TempDir(), AuthFile: filepath.Join(t.TempDir(), "auth.json"),
	}
	s := new(storetest.Memory)
	return &Puller{Registry: config, Names: registry.New(config), Store: s, Environ: []string{"HOME=/nonexistent"}}, s
}

// expectNothing asserts that nothing was stored.
func expectNothing(t *testing.T, s *storetest.Memory) {
	t.Helper()
	g := NewWithT(t)
	g.Expect(s.List(t.Context())).To(BeEmpty())
}

// registries are two on the same address: one in the pod, which has the image, and
// one on the host, which must never be asked.
type registries struct {
	pod, host *fakeregistry.Registry
	image     fakeregistry.Pushed
}

func newRegistries(t *testing.T, p pod, opts fakeregistry.Options) registries {
	t.Helper()
	r := registries{host: fakeregistry.New(t, fakeregistry.Options{})}
	opts.Listen = r.host.Host()
	p.within(func() { r.pod = fakeregistry.New(t, opts) })
	r.image = r.pod.Push(t, "app", "v1", fakeregistry.Image{Layers: [][]byte{[]byte("layer")}})
	return r
}

func TestPullInThePod(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	r := newRegistries(t, p, fakeregistry.Options{Username: "alice", Password: password})
	puller, s := newPuller(t)
	req := manifestonly.Request{Name: r.image.Reference, Credentials: registryauth.Credentials{Username: "alice", Password: password}}

	result, err := puller.Pull(t.Context(), Place{NetNS: p.path}, req)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Record.Manifest.Digest()).To(Equal(r.image.Digest))
	g.Expect(result.Record.ImageID().String()).To(Equal(r.image.ConfigDigest.Encoded()))
	g.Expect(result.Record.Layers).To(Equal(1))
	g.Expect(result.Pulled.Reference.String()).To(Equal(r.image.Reference))
	g.Expect(result.Stats.Requests).To(Equal(len(r.pod.Requests())))
	g.Expect(s.List(t.Context())).To(HaveLen(1))
	g.Expect(r.pod.Asked(r.image.Layers[0].String())).To(BeFalse(), "no layer is asked for")
	g.Expect(r.host.Requests()).To(BeEmpty(), "no request from the host's network")

	// The same name from the host is another registry.
	_, err = puller.Pull(t.Context(), Place{}, req)
	g.Expect(errdefs.Is(err, errdefs.NotFound)).To(BeTrue(), "%v", err)
	g.Expect(r.host.Requests()).NotTo(BeEmpty())
	r.host.Stop()
	_, err = puller.Pull(t.Context(), Place{}, req)
	g.Expect(errdefs.Is(err, errdefs.RegistryUnavailable)).To(BeTrue(), "%v", err)
}

func TestWarmPullFetchesNothingTwice(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	image := r.Push(t, "app", "v1", fakeregistry.Image{})
	index := r.PushIndex(t, "app", "all", image.Entry("linux", "amd64", ""))
	puller, _ := newPuller(t)
	for i, pull := range []struct {
		untrusted, asked bool
	}{
		{asked: true}, {asked: false},
		// In a pod's network anyone may answer for this registry, and name what he would
		// like to have of the store.
		{untrusted: true, asked: true},
	} {
		r.Forget()
		req := manifestonly.Request{Name: index.Reference}
		req.Platform.OS, req.Platform.Architecture = "linux", "amd64"
		place := Place{}
		if pull.untrusted {
			place.NetNS = "/proc/thread-self/ns/net" // the host's, as a pod's
		}
		_, err := puller.Pull(t.Context(), place, req)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.Paths()).To(ContainElement(HaveSuffix("/manifests/all")), "the registry has the last word")
		g.Expect(r.Asked(image.Digest.String())).To(Equal(pull.asked), "pull %d", i)
		g.Expect(r.Asked(image.ConfigDigest.String())).To(Equal(pull.asked), "pull %d", i)
	}
}

func TestThePodsResolverIsAsked(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	r := newRegistries(t, p, fakeregistry.Options{})
	_, port, err := net.SplitHostPort(r.pod.Host())
	g.Expect(err).NotTo(HaveOccurred())
	const name = "registry.tenant.husk-test"
	own, hosts := &resolver{name: name}, &resolver{name: name}
	own.serve(p, "127.0.0.1:53")
	// The host's resolvers would be asked here, if the host's resolv.conf were read.
	for i, address := range hostResolvers(t) {
		if i == 0 {
			t.Logf("the host's resolver is %s", address)
		}
		p.ip("addr", "add", address+"/32", "dev", "lo")
		hosts.serve(p, net.JoinHostPort(address, "53"))
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	g.Expect(os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o600)).To(Succeed())
	puller, _ := newPuller(t)
	puller.Registry.InsecureRegistries = []string{name + ":" + port}
	result, err := puller.Pull(t.Context(), Place{NetNS: p.path, ResolvConf: conf}, manifestonly.Request{Name: name + ":" + port + "/app:v1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Record.Manifest.Digest()).To(Equal(r.image.Digest))
	g.Expect(own.asked()).To(ContainElement(name))
	g.Expect(hosts.asked()).To(BeEmpty())

	if len(hostResolvers(t)) == 0 {
		t.Skip("the host names no resolver to stand in for")
	}
	_, err = puller.Pull(t.Context(), Place{NetNS: p.path}, manifestonly.Request{Name: name + ":" + port + "/app:v1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(hosts.asked()).NotTo(BeEmpty(), "the check above can fail")
}

// The registry has no address at all here: only the proxy knows it.
func TestTheDaemonsProxyIsUsed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	r := newRegistries(t, p, fakeregistry.Options{})
	const host = "registry.nowhere.husk-test"
	puller, _ := newPuller(t)
	puller.Registry.InsecureRegistries = []string{host}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	g.Expect(os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o600)).To(Succeed()) // where nobody answers
	place, req := Place{NetNS: p.path, ResolvConf: conf}, manifestonly.Request{Name: host + "/app:v1"}
	_, err := puller.Pull(t.Context(), place, req)
	g.Expect(errdefs.Is(err, errdefs.RegistryUnavailable)).To(BeTrue(), "%v", err)
	g.Expect(r.pod.Requests()).To(BeEmpty())

	puller.Environ = append(puller.Environ, "http_proxy=http://"+r.pod.Host())
	result, err := puller.Pull(t.Context(), place, req)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Record.Manifest.Digest()).To(Equal(r.image.Digest))
	g.Expect(r.pod.Requests()).To(ContainElement(HaveField("Host", host)))
}

func TestWhereTheChildIs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	group, groups, procs := testGroup(t)
	r := newRegistries(t, p, fakeregistry.Options{})
	r.pod.On(fakeregistry.Manifest(""), fakeregistry.Hang())
	puller, s := newPuller(t)
	puller.Environ = append(puller.Environ, "HTTPS_PROXY="+proxy)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := pullAside(ctx, puller, Place{NetNS: p.path, Cgroup: group}, manifestonly.Request{
		Name: r.image.Reference, Credentials: registryauth.Credentials{Username: "alice", Password: password},
	})
	g.Eventually(r.pod.Paths).WithTimeout(10*time.Second).Should(ContainElement(HaveSuffix("/manifests/v1")), "it is at work")
	var pids []string
	g.Eventually(func() []string { pids = procs(); return pids }).Should(HaveLen(1), "in the pod's cgroup")
	for _, file := range []string{"cmdline", "environ"} {
		data, err := os.ReadFile(filepath.Join("/proc", pids[0], file))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(data)).NotTo(Or(ContainSubstring(password), ContainSubstring("secret"), ContainSubstring("PROXY")), file)
	}
	score, err := os.ReadFile(filepath.Join("/proc", pids[0], "oom_score_adj"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(score)).To(Equal(strconv.Itoa(oomScore) + "\n"))

	cancel()
	g.Eventually(done).WithTimeout(10 * time.Second).Should(Receive(&err))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
	expectGone(t, pids[0])
	g.Expect(groups()).To(BeEmpty(), "its own group is gone")
	expectNothing(t, s)
}

func TestKilledChild(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPod(t)
	group, groups, procs := testGroup(t)
	r := newRegistries(t, p, fakeregistry.Options{})
	r.pod.On(fakeregistry.Manifest(""), fakeregistry.Hang())
	puller, s := newPuller(t)
	done := pullAside(t.Context(), puller, Place{NetNS: p.path, Cgroup: group}, manifestonly.Request{Name: r.image.Reference})
	g.Eventually(r.pod.Paths).WithTimeout(10 * time.Second).Should(ContainElement(HaveSuffix("/manifests/v1")))
	pids := procs()
	g.Expect(pids).To(HaveLen(1))
	pid, err := strconv.Atoi(pids[0])
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(syscall.Kill(pid, syscall.SIGKILL)).To(Succeed())
	g.Eventually(done).WithTimeout(10 * time.Second).Should(Receive(&err))
	g.Expect(err).To(MatchError(And(ContainSubstring(r.image.Reference), ContainSubstring("memory limit of the pod"))))
	expectGone(t, pids[0])
	g.Expect(groups()).To(BeEmpty())
	expectNothing(t, s)
}

// pullAside starts a pull and gives its error when it has ended.
func pullAside(ctx context.Context, puller *Puller, place Place, req manifestonly.Request) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := puller.Pull(ctx, place, req)
		done <- err
	}()
	return done
}

func expectGone(t *testing.T, pid string) {
	t.Helper()
	_, err := os.Stat(filepath.Join("/proc", pid))
	NewWithT(t).Expect(err).To(MatchError(os.ErrNotExist))
}

func TestErrors(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	r := newRegistries(t, p, fakeregistry.Options{Username: "alice", Password: "right"})
	open := newRegistries(t, p, fakeregistry.Options{})
	echo := newRegistries(t, p, fakeregistry.Options{})
	echo.pod.On(fakeregistry.Manifest(""), fakeregistry.Echo(403))
	plain := filepath.Join(t.TempDir(), "plain")
	NewWithT(t).Expect(os.WriteFile(plain, nil, 0o600)).To(Succeed())
	inPod := Place{NetNS: p.path}
	for name, tc := range map[string]struct {
		place  Place
		name   string
		limits manifestonly.Limits
		kind   errdefs.Kind
	}{
		"wrong password":      {inPod, r.image.Reference, manifestonly.Limits{}, errdefs.Unauthorized},
		"echoed password":     {inPod, echo.image.Reference, manifestonly.Limits{}, errdefs.Unauthorized},
		"no image":            {inPod, open.image.Repository + ":none", manifestonly.Limits{}, errdefs.NotFound},
		"no registry":         {inPod, "127.0.0.1:1/a:1", manifestonly.Limits{}, errdefs.RegistryUnavailable},
		"over the limits":     {inPod, open.image.Reference, manifestonly.Limits{MaxImageBytes: 1}, errdefs.TooLarge},
		"no name":             {inPod, "NOT A NAME", manifestonly.Limits{}, errdefs.InvalidArgument},
		"no netns":            {Place{NetNS: p.path + "-gone"}, open.image.Reference, manifestonly.Limits{}, errdefs.Internal},
		"netns is plain file": {Place{NetNS: plain}, open.image.Reference, manifestonly.Limits{}, errdefs.Internal},
		"no cgroup":           {Place{NetNS: p.path, Cgroup: "/husk-test-none"}, open.image.Reference, manifestonly.Limits{}, errdefs.Internal},
		"no resolv.conf":      {Place{NetNS: p.path, ResolvConf: "/no/such"}, open.image.Reference, manifestonly.Limits{}, errdefs.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			puller, s := newPuller(t)
			_, err := puller.Pull(t.Context(), tc.place, manifestonly.Request{
				Name: tc.name, Limits: tc.limits, Credentials: registryauth.Credentials{Username: "alice", Password: password},
			})
			g.Expect(err).To(HaveOccurred())
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(err.Error()).NotTo(ContainSubstring(password))
			expectNothing(t, s)
		})
	}
	t.Cleanup(func() {
		for _, host := range []*fakeregistry.Registry{r.host, open.host, echo.host} {
			NewWithT(t).Expect(host.Requests()).To(BeEmpty(), "whatever fails, the host's network is not used instead")
		}
	})
}
