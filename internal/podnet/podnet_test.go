package podnet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cri-o/ocicni/pkg/ocicni"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestPods has the tests with real plugins. Each node is a subnet of its own.
func TestPods(t *testing.T) {
	t.Parallel()
	needNode(t)
	serial := new(atomic.Int32)
	for name, test := range map[string]func(*testing.T, *atomic.Int32){
		"attached, reached and detached":       attached,
		"by the network's name":                named,
		"what plugins are told":                told,
		"a plugin that fails in the chain":     failsInChain,
		"attached twice":                       attachedTwice,
		"many at once":                         many,
		"detached without a namespace":         withoutNamespace,
		"detached without a configuration":     withoutConfiguration,
		"detached after a killed SetUp":        afterKill,
		"CRI-O starts again":                   crioStarts,
		"nothing is configured":                unconfigured,
		"a network that is gone and a pod too": goneNetwork,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, serial)
		})
	}
}

func attached(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial, "tuning")
	a := n.pod("one")
	g.Expect(links(t, a)).To(Equal([]string{"lo"}))
	got, err := n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.Network).To(Equal("pods"))
	g.Expect(got.IPs).To(HaveLen(1))
	g.Expect(n.subnet.Contains(got.IPs[0])).To(BeTrue())
	g.Expect(n.leases("pods")).To(Equal([]string{got.IPs[0].String()}))
	g.Expect(links(t, a)).To(ConsistOf("lo", "eth0"))

	gateway := n.subnet.Addr().Next()
	listener, err := net.Listen("tcp", netip.AddrPortFrom(gateway, 0).String())
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(listener.Close()).To(Succeed()) }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	g.Expect(err).NotTo(HaveOccurred())
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = conn.Write([]byte(conn.RemoteAddr().String()))
			_ = conn.Close()
		}
	}()
	out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+a.Netns, "bash", "-c", "cat < /dev/tcp/"+gateway.String()+"/"+port).Output()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(out)).To(HavePrefix(got.IPs[0].String() + ":"))

	for range 2 {
		g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
		g.Expect(n.leases("pods")).To(BeEmpty())
		g.Expect(links(t, a)).To(Equal([]string{"lo"}))
		g.Expect(os.ReadDir(filepath.Join(n.CacheDir, "results"))).To(BeEmpty())
	}
	fds, err := filepath.Glob("/proc/self/fd/*")
	g.Expect(err).NotTo(HaveOccurred())
	for _, fd := range fds {
		target, _ := os.Readlink(fd)
		g.Expect(target).NotTo(ContainSubstring("inotify"), "nobody watches the configuration")
	}
}

func named(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	n.configure("20-second.conflist", "second", "tstbrs")
	g.Expect(n.Networks(t.Context())).To(Equal([]string{"pods", "second"}))
	a := n.pod("one")
	a.Network = "second"
	g.Expect(n.SetUp(t.Context(), a)).To(HaveField("Network", "second"))
	g.Expect(n.leases("second")).To(HaveLen(1))
	g.Expect(n.leases("pods")).To(BeEmpty())
	a.Network = "" // whatever it is attached to
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
	g.Expect(n.leases("second")).To(BeEmpty())

	other := n.Config
	other.DefaultNetwork = "second"
	g.Expect(other.SetUp(t.Context(), a)).To(HaveField("Network", "second"))
	g.Expect(other.TearDown(t.Context(), a)).To(Succeed())
	for _, network := range []string{"third", "Pods"} {
		a.Network = network
		_, err := n.SetUp(t.Context(), a)
		g.Expect(err).To(MatchError(And(ContainSubstring("no CNI network "), ContainSubstring("which has: pods, second"))))
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	}
	g.Expect(n.leases("*")).To(BeEmpty())
}

func told(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial, "tells")
	heard := filepath.Join(n.dir, "heard")
	n.plugin("tells", `env | grep ^CNI_ | sort >> `+heard+`
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0"}'; exit 0
`)
	a := n.pod("web-0.a_b")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred())
	env, err := os.ReadFile(heard)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(strings.Split(string(env), "\n")).To(ContainElements(
		"CNI_COMMAND=ADD", "CNI_CONTAINERID="+a.PodID, "CNI_IFNAME=eth0", "CNI_NETNS="+a.Netns,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0.a_b;K8S_POD_INFRA_CONTAINER_ID="+a.PodID+";K8S_POD_UID="+a.PodID,
	))
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
}

func failsInChain(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial, "refuses")
	n.plugin("refuses", `[ $CNI_COMMAND = DEL ] && exit 0
echo '{"cniVersion":"1.0.0","code":11,"msg":"no room in the firewall"}'; exit 1
`)
	a := n.pod("one")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(err).To(MatchError(ContainSubstring("no room in the firewall")))
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal))
	g.Expect(n.leases("pods")).To(BeEmpty(), "the bridge plugin had given one")
	g.Expect(links(t, a)).To(Equal([]string{"lo"}))
	g.Expect(n.cached(a.PodID)).To(BeFalse())

	// One that fails at DEL too: both are said, and a later TearDown mends it.
	n.plugin("refuses", "echo broken >&2; exit 1\n")
	_, err = n.SetUp(t.Context(), a)
	g.Expect(err).To(MatchError(And(ContainSubstring("(add)"), ContainSubstring("(delete)"), ContainSubstring("broken"))))
	g.Expect(n.leases("pods")).To(HaveLen(1))
	g.Expect(n.TearDown(t.Context(), a)).To(MatchError(ContainSubstring("broken")))
	n.plugin("refuses", "exit 0\n")
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
	g.Expect(n.leases("pods")).To(BeEmpty())
}

func attachedTwice(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	a := n.pod("one")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred())
	_, err = n.SetUp(t.Context(), a)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	g.Expect(links(t, a)).To(ConsistOf("lo", "eth0"), "the refusal undoes nothing")
	g.Expect(n.leases("pods")).To(HaveLen(1))
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
	_, err = n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred(), "and once detached it can be attached again")
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
}

func many(t *testing.T, serial *atomic.Int32) {
	const count = 6
	g, n := NewWithT(t), newNode(t, serial, "tuning")
	var pods []Attachment
	for i := range count {
		pods = append(pods, n.pod("pod"+string(rune('a'+i))))
	}
	var wg sync.WaitGroup
	ips, errs := make([]string, count), make([]error, count)
	for i, a := range pods {
		wg.Go(func() {
			got, err := n.SetUp(t.Context(), a)
			errs[i] = err
			if err == nil {
				ips[i] = got.IPs[0].String()
			}
		})
	}
	wg.Wait()
	g.Expect(errs).To(HaveEach(BeNil()))
	slices.Sort(ips)
	g.Expect(slices.Compact(ips)).To(HaveLen(count))
	for i, a := range pods {
		wg.Go(func() { errs[i] = n.TearDown(t.Context(), a) })
	}
	wg.Wait()
	g.Expect(errs).To(HaveEach(BeNil()))
	g.Expect(n.leases("pods")).To(BeEmpty())
}

func withoutNamespace(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial, "tuning")
	for name, lose := range map[string]func(path string) error{
		"removed":   RemoveNetns,
		"unmounted": func(path string) error { return exec.Command("umount", "-l", path).Run() },
	} {
		a := n.pod(name)
		_, err := n.SetUp(t.Context(), a)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(lose(a.Netns)).To(Succeed())
		g.Expect(n.leases("pods")).To(HaveLen(1))
		g.Expect(n.TearDown(t.Context(), a)).To(Succeed(), name)
		g.Expect(n.leases("pods")).To(BeEmpty(), name)
		g.Expect(n.TearDown(t.Context(), a)).To(Succeed(), name)
	}
}

func withoutConfiguration(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	a := n.pod("one")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.Remove(filepath.Join(n.ConfDir, "10-pods.conflist"))).To(Succeed())
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed(), "by what the cache has")
	g.Expect(n.leases("pods")).To(BeEmpty())
	g.Expect(links(t, a)).To(Equal([]string{"lo"}))
}

// afterKill: husk was killed while a plugin ran, which completed: there is a lease, and
// nothing in the cache.
func afterKill(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	a := n.pod("one")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.RemoveAll(n.CacheDir)).To(Succeed())
	g.Expect(n.leases("pods")).To(HaveLen(1))

	// As long as the configuration cannot be used, that is an error: the lease is still there.
	plugins := n.PluginDirs
	n.PluginDirs = plugins[:1]
	g.Expect(n.TearDown(t.Context(), a)).NotTo(Succeed())
	n.PluginDirs = plugins
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
	g.Expect(n.leases("pods")).To(BeEmpty())
	g.Expect(links(t, a)).To(Equal([]string{"lo"}))
}

// crioStarts does what CRI-O does when it starts on the same configuration: it deletes
// the attachments in its cache that are of no pod of its own.
func crioStarts(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	a := n.pod("one")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred())
	for _, c := range []struct {
		cache string
		left  int
	}{{t.TempDir(), 1}, {n.CacheDir, 0}} { // the latter shows that it would
		crio, err := ocicni.InitCNINoInotify("", n.ConfDir, c.cache, n.PluginDirs...)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(crio.GC(t.Context(), nil)).To(Succeed())
		g.Expect(n.leases("pods")).To(HaveLen(c.left))
	}
	g.Expect(DefaultCacheDir).NotTo(Equal("/var/lib/cni"))
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
}

func unconfigured(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	a := n.pod("one")
	n.ConfDir = filepath.Join(n.dir, "none")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	g.Expect(err).To(MatchError(ContainSubstring("no CNI network is configured in " + n.ConfDir)))
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed(), "there is nothing to detach from")
	g.Expect(n.ConfDir).NotTo(BeADirectory(), "and the node's configuration is not ours to make")

	n.ConfDir = filepath.Join(n.dir, "net.d")
	n.PluginDirs = []string{filepath.Join(n.dir, "bin")}
	_, err = n.SetUp(t.Context(), a)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	g.Expect(err).To(MatchError(And(ContainSubstring("10-pods.conflist cannot be used"), ContainSubstring(`"bridge"`))), "says what is missing")

	a.Netns = filepath.Join(n.dir, "net.d", "10-pods.conflist")
	_, err = n.SetUp(t.Context(), a)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a.Netns = n.pod("two").Netns
	_, err = n.SetUp(ctx, a)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Canceled), "%v", err)
}

func goneNetwork(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	a := n.pod("one")
	a.Network = "gone"
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
	a.Network = "pods"
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed(), "it never was attached")
	g.Expect(n.leases("pods")).To(BeEmpty())
}

func TestWhatPluginsCannotBeTold(t *testing.T) {
	t.Parallel()
	right := Attachment{PodID: strings.Repeat("a", 64), Name: "pod", Netns: "/proc/self/ns/net"}
	NewWithT(t).Expect(right.check()).To(Succeed())
	for name, change := range map[string]func(*Attachment){
		"no ID":                   func(a *Attachment) { a.PodID = "" },
		"an ID that is a path":    func(a *Attachment) { a.PodID = "../../etc" },
		"an ID that is a pattern": func(a *Attachment) { a.PodID = "a*" },
		"an ID that is long":      func(a *Attachment) { a.PodID = strings.Repeat("a", 254) },
		"no name":                 func(a *Attachment) { a.Name = "" },
		"another argument":        func(a *Attachment) { a.Name = "a;K8S_POD_NAMESPACE=kube-system" },
		"a line":                  func(a *Attachment) { a.Name = "a\n" },
		"an argument in the last": func(a *Attachment) { a.Namespace = "a;IP=10.0.0.1" },
		"a network that is a path": func(a *Attachment) {
			a.Network = "../../../etc/x"
		},
		"a network with a NUL": func(a *Attachment) { a.Network = "a\x00" },
	} {
		g := NewWithT(t)
		a := right
		change(&a)
		dir := t.TempDir()
		c := Config{ConfDir: dir, PluginDirs: []string{dir}, CacheDir: filepath.Join(dir, "cache")}
		_, err := c.SetUp(t.Context(), a)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), name)
		g.Expect(errdefs.KindOf(c.TearDown(t.Context(), a))).To(Equal(errdefs.InvalidArgument), name)
		g.Expect(os.ReadDir(dir)).To(BeEmpty(), name)
	}
}
