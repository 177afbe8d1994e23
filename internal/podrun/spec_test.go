package podrun

import (
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podrun/pause"
	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

const huskPath = "/opt/containerd-shim-husk-v2"

func podID() string { return strings.Repeat("c", 64) }
func ctrID() string { return strings.Repeat("d", 64) }
func kata() bundles.Runtime {
	return bundles.Runtime{Name: "kata", Path: "/opt/containerd-shim-kata-v2"}
}

// options are of an image that runs sh.
func options(t *testing.T) Options {
	t.Helper()
	g := NewWithT(t)
	ref, err := imageref.ParseReference("registry.test/app:v1")
	g.Expect(err).NotTo(HaveOccurred())
	d, err := imageref.ParseManifestDigest("sha256:" + strings.Repeat("a", 64))
	g.Expect(err).NotTo(HaveOccurred())
	c, err := imageref.ParseConfigDigest("sha256:" + strings.Repeat("b", 64))
	g.Expect(err).NotTo(HaveOccurred())
	return Options{
		Runtime: bundles.Runtime{Name: "husk", Path: huskPath},
		Image: imageref.Record{
			StorageID: imageref.RecordID(d), Manifest: d, ConfigDigest: c, Image: imgspec.Image{Config: imgspec.ImageConfig{Cmd: []string{"sh"}}},
		},
		Pulled: imageref.PulledReference{Reference: ref, Digest: d},
	}
}

func podOf(network, netns string) podInfo {
	id := podID()
	return podInfo{dir: "/state/pods/" + id, Container: bundles.Container{
		ID: id, Name: "p.pod", Sandbox: true, Runtime: bundles.Runtime{Name: "husk", Path: huskPath},
		Pod: bundles.Pod{ID: id, Name: "p", Hostname: "p", Network: network, Netns: netns, CgroupParent: "/parent/pod-" + id},
	}}
}

// netnsOf is the path of the network namespace; own is false without one.
func netnsOf(spec *rspec.Spec) (path string, own bool) {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == rspec.NetworkNamespace {
			return ns.Path, true
		}
	}
	return "", false
}

// TestWhereLayersArePulled: the shim pulls where these specs say (sandbox.PlaceOf).
func TestWhereLayersArePulled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ network, netns, sandbox, container string }{
		{"bridge", "/ns", "/ns", "/ns"},
		{NetworkHost, "", "", ""},
		{NetworkNone, "/ns", "", "/ns"},
	} {
		g := NewWithT(t)
		pod := podOf(c.network, c.netns)
		infra, err := (&Engine{Self: "/usr/bin/husk"}).sandboxSpec(pod)
		g.Expect(err).NotTo(HaveOccurred())
		place, err := sandbox.PlaceOf(infra)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(place).To(Equal(sandbox.Place{NetNS: c.sandbox, ResolvConf: pod.dir + "/resolv.conf", Cgroup: pod.Pod.CgroupParent}), c.network)
		o := options(t)
		spec, err := containerSpec(o, bundles.Container{ID: ctrID(), Name: "n", Runtime: o.Runtime}, pod)
		g.Expect(err).NotTo(HaveOccurred())
		path, there := netnsOf(spec)
		g.Expect(path).To(Equal(c.container), c.network)
		g.Expect(there).To(Equal(c.container != ""), c.network)
		for _, s := range []*rspec.Spec{infra, spec} {
			g.Expect(bundlegen.Validate(s)).To(Succeed())
		}
	}
}

func TestSpecs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	pod := podOf("bridge", "/ns")
	infra, err := (&Engine{Self: "/usr/bin/husk"}).sandboxSpec(pod)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(infra.Process.Args).To(Equal([]string{pause.Path}))
	g.Expect(infra.Annotations).To(HaveKeyWithValue(annotations.CRIOContainerType, "sandbox"))
	g.Expect(infra.Annotations).To(HaveKeyWithValue(annotations.CRIOSandboxID, pod.ID))
	g.Expect(infra.Process.Capabilities.Bounding).To(BeEmpty())

	o := options(t)
	o.Volumes = []rspec.Mount{{Destination: "/etc/hosts", Type: "bind", Source: "/mine", Options: []string{"rbind"}}}
	spec, err := containerSpec(o, bundles.Container{ID: ctrID(), Name: "n", Runtime: o.Runtime}, pod)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(spec.Annotations).To(HaveKeyWithValue(annotations.CRIOContainerType, "container"))
	g.Expect(spec.Annotations).To(HaveKeyWithValue(annotations.CRIOImageName, o.Pulled.Pinned().String()))
	var hosts []string
	for _, m := range spec.Mounts {
		if m.Destination == "/etc/hosts" {
			hosts = append(hosts, m.Source)
		}
	}
	g.Expect(hosts).To(Equal([]string{"/mine"}), "the user's file takes the pod's place")
	g.Expect(guestPull(spec.Annotations).Source).To(Equal(o.Pulled.Pinned().String()))
	g.Expect(joinSandbox(42)(spec)).To(Succeed())
	g.Expect(spec.Linux.Namespaces).To(ContainElement(rspec.LinuxNamespace{Type: rspec.IPCNamespace, Path: "/proc/42/ns/ipc"}))
	g.Expect(spec.Linux.Namespaces).To(ContainElement(rspec.LinuxNamespace{Type: rspec.PIDNamespace}))

	o.Image.Image.Config.User = "web"
	_, err = containerSpec(o, bundles.Container{ID: ctrID(), Name: "n", Runtime: kata()}, pod)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.UserUnresolvable))
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		change func(*Options)
		kind   errdefs.Kind
	}{
		{func(o *Options) { o.Name = "a.pod" }, errdefs.InvalidArgument},
		{func(o *Options) { o.Pod = "a.pod" }, errdefs.InvalidArgument},
		{func(o *Options) { o.Network, o.Runtime = NetworkNone, kata() }, errdefs.Unsupported},
		{func(o *Options) { o.Runtime.Path = "shim" }, errdefs.InvalidArgument},
	} {
		o := options(t)
		NewWithT(t).Expect(o.check()).To(Succeed())
		c.change(&o)
		NewWithT(t).Expect(errdefs.KindOf(o.check())).To(Equal(c.kind))
	}
}

func TestSmallThings(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for name, want := range map[string]any{"": unix.SIGTERM, "SIGQUIT": unix.SIGQUIT, "int": unix.SIGINT, "nonsense": unix.SIGTERM} {
		g.Expect(stopSignal(name)).To(Equal(want), name)
	}
	id := podID()
	for parent, want := range map[string]string{"": "/husk-run/pod-" + id, "a/b": "/a/b/pod-" + id, "x-y.slice": "/x.slice/x-y.slice/pod-" + id} {
		g.Expect(podCgroup(parent, id)).To(Equal(want))
	}
	for name, want := range map[string]string{"web": "web", "Web_1": id[:12], strings.Repeat("a", 64): id[:12]} {
		g.Expect(hostname(name, id, "bridge")).To(Equal(want))
	}
	g.Expect(asks(unix.SIGINT)).To(BeTrue())
	g.Expect(asks(unix.SIGHUP)).To(BeFalse())
	c := bundles.Container{}
	exited(3, "")(&c)
	exited(137, "later")(&c)
	g.Expect(c.State.ExitCode).To(Equal(3))
	g.Expect(c.State.Reason).To(BeEmpty())
}

func TestSuspect(t *testing.T) {
	t.Parallel()
	infra := func(s bundles.Status) bundles.Container {
		return bundles.Container{Sandbox: true, State: bundles.State{Status: s}}
	}
	member := func(s bundles.Status, rm bool) bundles.Container {
		return bundles.Container{AutoRemove: rm, State: bundles.State{Status: s}}
	}
	for _, c := range []struct {
		members []bundles.Container
		want    bool
	}{
		{[]bundles.Container{infra(bundles.StatusExited), member(bundles.StatusExited, false)}, false},
		{[]bundles.Container{infra(bundles.StatusExited), member(bundles.StatusExited, true)}, true},
		{[]bundles.Container{infra(bundles.StatusRunning), member(bundles.StatusExited, false)}, true},
		{[]bundles.Container{infra(bundles.StatusExited), member(bundles.StatusCreated, false)}, true},
		{[]bundles.Container{infra(bundles.StatusExited)}, true},
	} {
		NewWithT(t).Expect(suspect(c.members)).To(Equal(c.want))
	}
}
