package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const imageName = "registry.local/app:1"

func admitted(g *WithT, k *kubelet, p pod) *pod {
	p.Name, p.Namespace, p.UID = "p", "ns", "p-uid"
	if p.Containers == nil {
		p.Containers = []container{{Name: "c", Image: imageName}}
	}
	g.Expect(k.node.admit(&p, time.Unix(1, 0))).To(Succeed())
	return &p
}

// TestOrderOfCalls is the trace of NODE.md, "What kubelet sends".
func TestOrderOfCalls(t *testing.T) {
	t.Parallel()
	begin, end := []string{"RunPodSandbox", "PodSandboxStatus"}, []string{"CreateContainer", "StartContainer", "ListContainers", "ContainerStatus"}
	for name, c := range map[string]struct {
		policy  string
		present bool
		want    []string
		reason  string
	}{
		"Always":               {"Always", true, []string{"PullImage", "ImageStatus", "ImageStatus"}, ""},
		"IfNotPresent absent":  {"IfNotPresent", false, []string{"ImageStatus", "PullImage", "ImageStatus", "ImageStatus"}, ""},
		"IfNotPresent present": {"IfNotPresent", true, []string{"ImageStatus", "ImageStatus"}, ""},
		"Never present":        {"Never", true, []string{"ImageStatus", "ImageStatus"}, ""},
		"Never absent":         {"Never", false, []string{"ImageStatus"}, "ErrImageNeverPull"},
	} {
		for _, gate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s gate=%t", name, gate), func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				image := &cri.Image{Id: "id", Size: 1, Username: "web"}
				r := &runtime{remote: map[string]*cri.Image{imageName: image}}
				k := serve(t, r)
				k.node.Gate = gate
				if c.present {
					r.local[imageName] = image
				}
				p := admitted(g, k, pod{Policy: c.policy, Handler: "husk", Annotations: map[string]string{"own": "1"}})
				result, err := k.syncPod(t.Context(), p)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(result.Containers[0].Reason).To(Equal(c.reason))
				want := slices.Concat(begin, c.want)
				if c.reason == "" {
					want = append(want, end...)
					g.Expect(result.Containers[0].Output).To(Equal("it runs"))
				}
				g.Expect(k.methods()).To(Equal(want))
				checkSpecs(g, r, p, gate, c.reason == "")
			})
		}
	}
}

// checkSpecs looks at the fields by which a front must tell the calls apart.
func checkSpecs(g *WithT, r *runtime, p *pod, gate, made bool) {
	handler := map[bool]string{true: "husk"}[gate]
	notes := HaveLen(3) // config.seen, config.source, and the pod's own
	for i, spec := range r.asked {
		if made && i == len(r.asked)-1 { // the user query
			g.Expect(proto.Equal(spec, &cri.ImageSpec{Image: imageName})).To(BeTrue())
			continue
		}
		g.Expect(spec.Annotations).To(notes)
		g.Expect(spec.RuntimeHandler).To(Equal(handler))
	}
	for _, pull := range r.pulls {
		g.Expect(pull.Image.Annotations).To(notes)
		g.Expect(pull.Image.RuntimeHandler).To(Equal(handler))
		g.Expect(pull.SandboxConfig.Metadata.Uid).To(Equal(p.UID))
	}
	if made {
		config := r.last().Config
		g.Expect(config.Image.RuntimeHandler).To(BeEmpty())
		g.Expect([]string{config.Image.Image, config.Image.UserSpecifiedImage}).To(Equal([]string{"id", imageName}))
		g.Expect(config.Linux.SecurityContext.RunAsUsername).To(Equal("web"))
		g.Expect(config.Linux.SecurityContext.RunAsUser).To(BeNil())
	}
}

// TestRestartAndDelete: another attempt in the same sandbox, with the same sandbox
// config, and then everything that there was is removed.
func TestRestartAndDelete(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := &runtime{remote: map[string]*cri.Image{imageName: {Id: "id", Size: 1}}}
	k := serve(t, r)
	p := admitted(g, k, pod{Policy: "IfNotPresent"})
	_, err := k.syncPod(t.Context(), p)
	g.Expect(err).NotTo(HaveOccurred())
	first := r.last()
	k.cri.calls = nil
	_, err = k.restart(t.Context(), p)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(k.methods()).To(Equal([]string{"StopContainer", "ImageStatus", "ImageStatus", "CreateContainer", "StartContainer", "ListContainers", "ContainerStatus"}))
	second := r.last()
	g.Expect(second.Config.Metadata.Attempt).To(Equal(uint32(1)))
	g.Expect(second.Config.Annotations).To(HaveKeyWithValue("io.kubernetes.container.restartCount", "1"))
	g.Expect(proto.Equal(second.SandboxConfig, first.SandboxConfig)).To(BeTrue())
	g.Expect(second.Config.Linux.SecurityContext.RunAsUser.GetValue()).To(BeZero()) // no user is root

	k.cri.calls = nil
	_, err = k.remove(t.Context(), p)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(k.methods()).To(Equal([]string{
		"StopContainer", "StopPodSandbox", "ContainerStatus", "RemoveContainer", "ContainerStatus", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
	}))
	g.Expect(r.containers).To(BeEmpty())
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	wrong, right := secret{Username: "u", Password: "wrong-one"}, secret{Username: "u", Password: "right-one"}
	for name, c := range map[string]struct {
		remote  string
		secrets []secret
		pulls   int
		reason  string
	}{
		"none":             {imageName, nil, 1, "ErrImagePull"},
		"wrong":            {imageName, []secret{wrong}, 1, "ErrImagePull"},
		"wrong then right": {imageName, []secret{wrong, right, wrong}, 2, ""},
		"wrong twice":      {imageName, []secret{wrong, wrong}, 2, "ErrImagePull"},
		"registry is down": {"", []secret{right}, 1, "RegistryUnavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := &runtime{remote: map[string]*cri.Image{c.remote: {Id: "id", Size: 1}}, password: right.Password}
			k := serve(t, r)
			result, err := k.syncPod(t.Context(), admitted(g, k, pod{Policy: "Always", Secrets: c.secrets}))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect([]any{result.Containers[0].Reason, result.Pulls}).To(Equal([]any{c.reason, c.pulls}))
			printed, err := json.Marshal(result)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(string(printed)).NotTo(ContainSubstring("-one"))
		})
	}
}

// TestImageWithoutSize: kubelet takes such an answer for an error.
func TestImageWithoutSize(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := &runtime{}
	k := serve(t, r)
	r.local[imageName] = &cri.Image{Id: "id"}
	result, err := k.syncPod(t.Context(), admitted(g, k, pod{Policy: "IfNotPresent"}))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Containers[0].Reason).To(Equal("ImageInspectError"))
}

// TestCommand runs the verbs as a test does, with what they keep between them.
func TestCommand(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := &runtime{remote: map[string]*cri.Image{imageName: {Id: "id", Size: 1}}, password: "pw"}
	k := serve(t, r)
	socket := strings.TrimPrefix(k.cri.conn.Target(), "unix://")
	var out bytes.Buffer
	do := func(verb string, args ...string) map[string]any {
		out.Reset()
		g.Expect(run(t.Context(), append([]string{verb, "--socket", socket, "--dir", k.node.Root, "--name", "p"}, args...), &out)).To(Succeed())
		var got map[string]any
		g.Expect(json.Unmarshal(out.Bytes(), &got)).To(Succeed())
		return got
	}
	do("run", "--policy", "Always", "--ensure-secret-pulled-images", "--creds", "u:pw", "--container", "c="+imageName, "--", "/bin/true")
	g.Expect(r.last().Config.Command).To(Equal([]string{"/bin/true"}))
	g.Expect(filepath.Join(k.node.Root, "pulled.json")).To(BeAnExistingFile())
	g.Expect(do("restart")).To(HaveKeyWithValue("pulls", BeEquivalentTo(1)))
	g.Expect(do("gc")).To(HaveKeyWithValue("removed", BeEmpty()))
	do("delete")
	g.Expect(do("gc")).To(HaveKeyWithValue("removed", ConsistOf("id")))
	for _, bad := range [][]string{nil, {"fly", "--socket", socket, "--dir", k.node.Root}, {"run"}, {"run", "--gate", "maybe"}, {"restart", "--socket", socket, "--dir", k.node.Root, "--name", "p"}} {
		g.Expect(run(t.Context(), bad, &out)).NotTo(Succeed(), "%q", bad)
	}
}
