package sandbox

import (
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestPlaceOf(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(PlaceOf(&rspec.Spec{})).To(BeZero())
	spec := &rspec.Spec{Linux: &rspec.Linux{}, Annotations: map[string]string{}}
	g.Expect(PlaceOf(spec)).To(BeZero(), "the host's network")

	spec.Linux.Namespaces = []rspec.LinuxNamespace{{Type: rspec.PIDNamespace}, {Type: rspec.NetworkNamespace, Path: "/ns"}}
	spec.Linux.CgroupsPath = "a-b.slice:crio:c1"
	spec.Mounts = []rspec.Mount{{Destination: "/etc/hosts", Source: "/h"}, {Destination: "/etc/resolv.conf", Source: "/r"}}
	g.Expect(PlaceOf(spec)).To(Equal(Place{NetNS: "/ns", ResolvConf: "/r", Cgroup: "/a.slice/a-b.slice"}))

	// CRI-O writes the annotations of a pod's owner over its own.
	spec.Annotations["io.kubernetes.cri-o.ResolvPath"] = "/dev/watchdog"
	g.Expect(PlaceOf(spec)).To(HaveField("ResolvConf", "/r"))

	spec.Linux.CgroupsPath = "a:b"
	_, err := PlaceOf(spec)
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)

	spec.Linux.Namespaces[1].Path = ""
	_, err = PlaceOf(spec)
	g.Expect(errdefs.Is(err, errdefs.Unsupported)).To(BeTrue(), "never the host's instead: %v", err)
}
