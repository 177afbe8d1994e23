package podpull

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// What CRI-O 1.34.0 answered for two pods of a test node, one with
// namespace_options.network = NODE (the list of system calls is shortened).
func verbose(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/crio-1.34-" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestFromRuntimeSpec(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	const node = "/tmp/hk.P0XxnE/n/crio/"
	g.Expect(FromRuntimeSpec(verbose(t, "pod"))).To(Equal(Place{
		NetNS: node + "ns/netns/5940408c-5e1b-4cc4-8849-3c892f4cbe3e",
		ResolvConf: node + "run/overlay-containers/43967a4e690944229faa25846afb615389b337a9b436afd95a9cea89a310afc7" +
			"/userdata/resolv.conf",
		Cgroup: "/hskt1-e65b4252",
	}))
	place, err := FromRuntimeSpec(verbose(t, "host"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(place.NetNS).To(Equal(node+"ns/netns/3052acff-f17a-4736-a4e5-c8b9bf0bb427"), "CRI-O binds the host's there")
}

func TestFromRuntimeSpecNeverGuessesTheHost(t *testing.T) {
	t.Parallel()
	// spec is CRI-O's answer with other namespaces and annotations.
	spec := func(namespaces, note string) string {
		return fmt.Sprintf(`{"runtimeSpec":{"linux":{"namespaces":[%s]},"annotations":{"io.kubernetes.cri-o.HostNetwork":%q}}}`,
			namespaces, note)
	}
	for name, tc := range map[string]struct {
		info string
		kind errdefs.Kind
	}{
		"no network namespace":   {spec(`{"type":"pid"}`, "false"), errdefs.Internal},
		"nothing said":           {spec("", ""), errdefs.Internal},
		"namespace without path": {spec(`{"type":"network"}`, "true"), errdefs.Unsupported},
		"no spec":                {`{"pid":1}`, errdefs.Internal},
		"no linux":               {`{"runtimeSpec":{}}`, errdefs.Internal},
		"not JSON":               {"", errdefs.Internal},
		"bad cgroup": {strings.Replace(spec(`{"type":"network","path":"/n"}`, "false"), `"namespaces"`, `"cgroupsPath":"a:b","namespaces"`, 1),
			errdefs.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			place, err := FromRuntimeSpec([]byte(tc.info))
			g.Expect(err).To(HaveOccurred())
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(place).To(BeZero())
		})
	}
	g := NewWithT(t)
	g.Expect(FromRuntimeSpec([]byte(spec("", "true")))).To(BeZero(), "the host's network, as CRI-O says")
	// An annotation, which a pod may have forged, moves no pod out of its network.
	g.Expect(FromRuntimeSpec([]byte(spec(`{"type":"network","path":"/n"}`, "true")))).To(Equal(Place{NetNS: "/n"}))
}

func TestSeparateCgroup(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(SeparateCgroup("", "/kubepods/pod1")).To(BeEmpty())
	g.Expect(SeparateCgroup("pod", "")).To(BeEmpty())
	g.Expect(SeparateCgroup("pod", "/kubepods/pod1")).To(Equal("/kubepods/pod1"))
	g.Expect(SeparateCgroup("pod", "a-b.slice")).To(Equal("/a.slice/a-b.slice"))
	for _, bad := range []string{"pods", "/a/b", "a--b.slice"} {
		_, err := SeparateCgroup(bad, "")
		g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%s: %v", bad, err)
	}

	needRoot(t)
	slice := "husktest" + fmt.Sprint(os.Getpid()) + ".slice"
	t.Cleanup(func() { removeGroup(t, "/"+slice) })
	g.Expect(sandbox.HasCgroup("/" + slice)).To(BeFalse())
	g.Expect(SeparateCgroup(slice, "")).To(Equal("/" + slice))
	g.Expect(sandbox.HasCgroup("/" + slice)).To(BeTrue())
}

// What the child is configured with must reach it whole.
func TestOrderIsLossless(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var full order
	fill(t, &full)
	data, err := json.Marshal(full)
	g.Expect(err).NotTo(HaveOccurred())
	var back order
	g.Expect(json.Unmarshal(data, &back)).To(Succeed())
	g.Expect(back).To(Equal(full))
}
