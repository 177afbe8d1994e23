package podnet

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// hangs is a plugin that does nothing but wait, with a child that holds its output.
const hangs = "sleep 1000; exit 0\n"

// TestPluginsThatHang is not parallel: that a version hangs is seen in all of the process.
func TestPluginsThatHang(t *testing.T) {
	needNode(t)
	serial := new(atomic.Int32)
	serial.Store(200)
	for name, test := range map[string]func(*testing.T, *atomic.Int32){
		"in ADD":                    hangsInAdd,
		"in ADD, but not for long":  slowAdd,
		"in DEL":                    hangsInDel,
		"when asked its version":    hangsInVersion,
		"when networks are listed ": hangsInList,
	} {
		t.Run(name, func(t *testing.T) { test(t, serial) })
	}
}

func hangsInAdd(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial, "hangs")
	n.plugin("hangs", "[ $CNI_COMMAND = DEL ] && exit 0\n"+hangs)
	a := n.pod("one")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	_, err := n.SetUp(ctx, a)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	g.Expect(time.Since(start)).To(And(BeNumerically(">", grace), BeNumerically("<", grace+reapTime+undoTimeout)))
	g.Expect(n.leases("pods")).To(BeEmpty())
	g.Expect(links(t, a)).To(Equal([]string{"lo"}))
	g.Expect(running(ofPod(a.PodID))).To(BeEmpty(), "neither the plugin nor its child")
}

// slowAdd: a plugin that is about to complete when the user gives up is not killed half way.
func slowAdd(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial, "slow")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n.plugin("slow", `[ $CNI_COMMAND = DEL ] && exit 0
touch `+n.dir+`/started; while ! [ -e `+n.dir+`/on ]; do sleep 0.02; done; echo '{"cniVersion":"1.0.0"}'
`)
	a := n.pod("one")
	done := make(chan error)
	go func() {
		_, err := n.SetUp(ctx, a)
		done <- err
	}()
	g.Eventually(n.dir + "/started").WithTimeout(30 * time.Second).Should(BeAnExistingFile())
	cancel()
	n.plugin("../on", "")
	g.Eventually(done).WithTimeout(grace).Should(Receive(BeNil()))
	g.Expect(links(t, a)).To(ConsistOf("lo", "eth0"))
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
}

func hangsInDel(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial, "hangs")
	n.plugin("hangs", `[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0"}' && exit 0`+"\n"+hangs)
	a := n.pod("one")
	_, err := n.SetUp(t.Context(), a)
	g.Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	err = n.TearDown(ctx, a)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	g.Expect(time.Since(start)).To(BeNumerically("<", time.Second+2*reapTime))
	g.Expect(running(ofPod(a.PodID))).To(BeEmpty())
	g.Expect(n.leases("pods")).To(HaveLen(1), "which the error says")

	n.plugin("hangs", "exit 0\n")
	g.Expect(n.TearDown(t.Context(), a)).To(Succeed())
	g.Expect(n.leases("pods")).To(BeEmpty())
}

// hangVersion adds a network whose plugin does not even say its version.
func hangVersion(n node) {
	n.configure("99-hangs.conflist", "hangs", "tstbrh", "mute")
	n.plugin("mute", "")
	hang := "#!/bin/sh\n" + hangs
	writeRaw(n.t, n.PluginDirs[0]+"/mute", hang)
}

func hangsInVersion(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	hangVersion(n)
	a := n.pod("one")
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := n.SetUp(ctx, a); return err },
		func(ctx context.Context) error { return n.TearDown(ctx, a) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		start := time.Now()
		err := call(ctx)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
		g.Expect(time.Since(start)).To(BeNumerically("<", time.Second+2*reapTime))
		g.Expect(running(ofVersion)).To(BeEmpty())
		cancel()
	}
	g.Expect(n.leases("pods")).To(BeEmpty())
}

func hangsInList(t *testing.T, serial *atomic.Int32) {
	g, n := NewWithT(t), newNode(t, serial)
	hangVersion(n)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := n.Networks(ctx)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
	g.Expect(running(func(environ []byte, _ bool) bool { // whoever has it as a child now
		return has(environ, "CNI_COMMAND=VERSION") && has(environ, ownNode+"=1")
	})).To(BeEmpty())
}

func TestBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	none := func([]byte, bool) bool { return false }
	g.Expect(bounded(t.Context(), none, func() (int, error) { return 7, nil })).To(Equal(7))
	broken := errors.New("broken")
	_, err := bounded(t.Context(), none, func() (int, error) { return 7, broken })
	g.Expect(err).To(MatchError(broken))

	// A call that nothing ends is left behind, after a while.
	ctx, cancel := context.WithCancel(t.Context())
	never := make(chan struct{})
	defer close(never)
	start := time.Now()
	_, err = bounded(ctx, none, func() (int, error) { cancel(); <-never; return 7, nil })
	g.Expect(err).To(MatchError(context.Canceled))
	g.Expect(time.Since(start)).To(BeNumerically("<", 2*reapTime))

	// Without time nothing is begun, and what others have begun is left alone.
	_, err = bounded(ctx, func([]byte, bool) bool { t.Error("looks for what to kill"); return false },
		func() (int, error) { t.Error("is begun"); return 7, nil })
	g.Expect(err).To(MatchError(context.Canceled))
}

func TestOutlive(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	ctx, cancel := context.WithCancel(t.Context())
	longer, stop := outlive(ctx, 50*time.Millisecond)
	cancel()
	g.Expect(longer.Err()).NotTo(HaveOccurred())
	g.Eventually(longer.Done()).Should(BeClosed())
	stop()

	longer, stop = outlive(t.Context(), time.Hour)
	g.Expect(longer.Err()).NotTo(HaveOccurred())
	stop()
	g.Expect(longer.Err()).To(MatchError(context.Canceled))
}
