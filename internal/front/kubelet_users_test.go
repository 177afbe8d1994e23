package front_test

import (
	"fmt"
	"slices"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
)

// userHandlers has one handler for each setting of named_users, and husk.
func userHandlers() fakeHandlers {
	handlers := allHandlers()
	handlers["refuse"] = front.Handler{Name: "refuse", GuestPull: true, RefusesNamedPulls: true}
	handlers["at-create"] = front.Handler{Name: "at-create", GuestPull: true}
	return handlers
}

// secure gives a pod's sandbox the securityContext that kubelet takes from the pod's own,
// never from its containers' (generatePodSandboxLinuxConfig).
func secure(config *cri.PodSandboxConfig, uid, gid *int64) {
	security := new(cri.LinuxSandboxSecurityContext)
	if uid != nil {
		security.RunAsUser = &cri.Int64Value{Value: *uid}
	}
	if gid != nil {
		security.RunAsGroup = &cri.Int64Value{Value: *gid}
	}
	config.Linux = &cri.LinuxPodSandboxConfig{SecurityContext: security}
}

// podUser is what a pod and its container set, in kubelet's terms.
type podUser struct{ podUID, podGID, uid, gid *int64 }

// ofPod: the pod's, which its containers have too.
func ofPod(uid, gid *int64) podUser { return podUser{uid, gid, uid, gid} }

const (
	pullSays   = "set runAsUser (and runAsGroup) in the pod's securityContext"
	createSays = "set runAsUser (and runAsGroup) in the container's or the pod's securityContext"
)

func TestKubeletNamedUsers(t *testing.T) {
	t.Parallel()
	id := func(v int64) *int64 { return &v }
	const atPull, atCreate = "pull", "create"
	for i, c := range []struct {
		handler, image string
		pod            podUser
		refused, says  string // where, and what of the user
		user           string // the annotation of the container that is made
	}{
		{"refuse", "web", podUser{}, atPull, `user "web" of the image is a name`, ""},
		{"refuse", "root", podUser{}, atPull, `user "root" of the image is a name`, ""},
		{"refuse", "web:1", podUser{}, atPull, `user "web" of the image is a name`, ""},
		{"refuse", "web:1", ofPod(nil, id(5)), atPull, `user "web" of the image is a name`, ""},
		{"refuse", "1000:staff", podUser{}, atPull, `group "staff" of the image is a name`, ""},
		{"refuse", "1000:staff", ofPod(nil, id(5)), "", "", `{"user":"1000:staff","group":5}`},
		{"refuse", "1000:staff", ofPod(id(7), nil), "", "", `{"user":"7"}`},
		{"refuse", "web", ofPod(id(7), nil), "", "", `{"user":"7"}`},
		{"refuse", "web", ofPod(id(0), nil), "", "", `{"user":"0"}`},
		{"refuse", "web", ofPod(id(7), id(8)), "", "", `{"user":"7","group":8}`},
		{"refuse", "web", podUser{podUID: id(7), uid: id(9)}, "", "", `{"user":"9"}`},
		// What only the container sets does not reach the pull.
		{"refuse", "web", podUser{uid: id(7)}, atPull, `user "web" of the image is a name`, ""},
		{"at-create", "web", podUser{uid: id(7)}, "", "", `{"user":"7"}`},
		{"at-create", "web", podUser{}, atCreate, `user "web" of the image is a name`, ""},
		{"at-create", "1000:staff", podUser{}, atCreate, `group "staff" of the image is a name`, ""},
		{"at-create", "1000:staff", podUser{gid: id(5)}, "", "", `{"user":"1000:staff","group":5}`},
		{"refuse", "1000", podUser{}, "", "", `{"user":"1000"}`},
		{"refuse", "1000:5", podUser{}, "", "", `{"user":"1000:5"}`},
		{"refuse", "", podUser{}, "", "", `{"user":"0"}`},
		{"refuse", "a:b:c", podUser{}, atPull, "more than one colon", ""},
		{"husk", "web", podUser{}, "", "", `{"user":"web"}`},
		{"husk", "1000:staff", podUser{}, "", "", `{"user":"1000:staff"}`},
	} {
		for _, gate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d %s %s gate=%v", i, c.handler, c.image, gate), func(t *testing.T) {
				t.Parallel()
				o := new(observer)
				n := newNode(t, front.Config{Handlers: userHandlers()}, func(with *front.Collaborators) { with.Observer = o })
				n.registry.publish(appImage, c.image, "")
				sandbox, config := n.sandbox("pod", c.handler)
				secure(config, c.pod.podUID, c.pod.podGID)
				k := &kubelet{node: n, policy: "IfNotPresent", gate: gate, handler: c.handler, user: c.pod.uid, group: c.pod.gid}
				err := k.start(t, sandbox, config)
				records, listErr := n.records.List(t.Context())
				n.Expect(listErr).NotTo(HaveOccurred())
				if c.refused == "" {
					n.Expect(err).NotTo(HaveOccurred())
					n.Expect(n.lastCreated().Annotations).To(HaveKeyWithValue(annotations.User, MatchJSON(c.user)))
					n.Expect(o.pulled).To(Equal([]string{c.handler + " ok"}))
					return
				}
				n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument), "%v", err)
				n.Expect(err).To(MatchError(And(ContainSubstring(c.says), ContainSubstring(appImage))))
				n.Expect(n.crio.created).To(BeEmpty())
				if c.refused == atPull {
					n.Expect(records).To(BeEmpty(), "nothing of a pull that was refused")
					n.Expect(o.pulled).To(Equal([]string{c.handler + " user-unresolvable"}))
					n.Expect(n.crio.pulled).To(BeEmpty())
				} else {
					n.Expect(records).To(HaveLen(1))
				}
				if c.image != "a:b:c" {
					want := pullSays
					if c.refused == atCreate {
						want = createSays
					}
					n.Expect(err).To(MatchError(And(ContainSubstring("runtime handler "+c.handler+" cannot look names up"), ContainSubstring(want))))
				}
			})
		}
	}
}

// TestNamedUserWithoutAPod: a pull for nobody is not refused for what nobody runs.
func TestNamedUserWithoutAPod(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{Handlers: userHandlers(), DefaultHandler: "refuse"})
	want := n.registry.publish(appImage, "web", "").ConfigDigest.ImageID().String()
	for _, req := range []*cri.PullImageRequest{
		{Image: &cri.ImageSpec{Image: appImage}},
		{Image: &cri.ImageSpec{Image: appImage, RuntimeHandler: "refuse"}},
		{Image: &cri.ImageSpec{Image: appImage, RuntimeHandler: "refuse"}, SandboxConfig: new(cri.PodSandboxConfig)},
	} {
		answer, err := n.PullImage(t.Context(), req)
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(answer.GetImageRef()).To(Equal(want))
	}
}

// TestKubeletNamedUserPulledByAnotherPod: a record that a pod with runAsUser brought is
// present to one without, whose container is refused then.
func TestKubeletNamedUserPulledByAnotherPod(t *testing.T) {
	t.Parallel()
	for _, gate := range []bool{false, true} {
		n := newNode(t, front.Config{Handlers: userHandlers()})
		n.registry.publish(appImage, "web", "")
		uid := int64(7)
		first, config := n.sandbox("first", "refuse")
		secure(config, &uid, nil)
		k := &kubelet{node: n, policy: "IfNotPresent", gate: gate, handler: "refuse", user: &uid}
		n.Expect(k.start(t, first, config)).To(Succeed())
		second, other := n.sandbox("second", "refuse")
		err := (&kubelet{node: n, policy: "IfNotPresent", gate: gate, handler: "refuse"}).start(t, second, other)
		n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
		n.Expect(n.crio.created).To(HaveLen(1), "the first pod's alone")
		if gate { // by handler, kubelet finds the record and does not pull
			n.Expect(err).To(MatchError(ContainSubstring(createSays)))
			n.Expect(n.registry.asked).To(HaveLen(1))
		} else {
			n.Expect(err).To(MatchError(ContainSubstring(pullSays)))
		}
		records, err := n.records.List(t.Context())
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(records).To(HaveLen(1), "the first pod's stays")
		// The first goes on.
		n.Expect(k.start(t, first, config)).To(Succeed())
	}
}

// TestNamedUserOfTheRequest: whose name it is, the message says.
func TestNamedUserOfTheRequest(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{Handlers: userHandlers()})
	ref := n.registry.publish(appImage, "1000", "").ConfigDigest.ImageID().String()
	n.pull(appImage)
	sandbox, config := n.sandbox("pod", "at-create")
	req := (&kubelet{node: n}).createRequest(ref, sandbox, config)
	req.Config.Linux.SecurityContext.RunAsUsername = "db"
	_, err := n.CreateContainer(t.Context(), req)
	n.Expect(err).To(MatchError(And(ContainSubstring(`user "db" of the request is a name`), ContainSubstring(createSays))))
}

// TestRefusedBeforeItsLayers: a pod's shim is asked for no layer of an image that is refused.
func TestRefusedBeforeItsLayers(t *testing.T) {
	t.Parallel()
	handlers := layerHandlers()
	h := handlers["husk"]
	h.RefusesNamedPulls, h.ResolvesNames = true, false
	handlers["husk"] = h
	l := newLayered(t, front.Config{Handlers: handlers})
	l.shim.Pull = succeeds(l.registry.publish(appImage, "web", ""))
	l.shim.Start(t, l.dir)
	for _, handler := range []string{"", "husk"} {
		_, err := l.kubelet(t.Context(), handler)
		l.Expect(err).To(MatchError(ContainSubstring(pullSays)))
	}
	l.Expect(l.shim.Pulls()).To(BeEmpty())
	l.Expect(l.present(t)).To(BeFalse())
	uid := int64(7)
	secure(l.config, &uid, nil)
	_, err := l.kubelet(t.Context(), "")
	l.Expect(err).NotTo(HaveOccurred())
	l.Expect(l.shim.Pulls()).To(HaveLen(1))
}

// TestRefusedFromThePodsNetwork: so is an image whose metadata came from there.
func TestRefusedFromThePodsNetwork(t *testing.T) {
	t.Parallel()
	p, handlers := new(placed), userHandlers()
	h := handlers["refuse"]
	h.PullInSandbox = true
	handlers["refuse"] = h
	n := newNode(t, front.Config{Handlers: handlers}, func(c *front.Collaborators) {
		p.registry, c.Placed = c.Puller.(*fakeRegistry), p
	})
	n.registry.publish(appImage, "web", "")
	_, config := n.sandbox("pod", "refuse")
	_, err := n.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: appImage}, SandboxConfig: config})
	n.Expect(err).To(MatchError(ContainSubstring(pullSays)))
	n.Expect(p.places).To(HaveLen(1))
	n.Expect(n.records.List(t.Context())).To(BeEmpty())
}

// TestLazyPull: layers that are left to the creation of the container are no shim's to pull
// before, and every record of the node is present.
func TestLazyPull(t *testing.T) {
	t.Parallel()
	handlers := layerHandlers()
	h := handlers["husk"]
	h.LazyPull = true
	handlers["husk"] = h
	for _, handler := range []string{"", "husk"} {
		l := newLayered(t, front.Config{Handlers: handlers})
		img := l.registry.publish(appImage, "web", "")
		l.shim.Pull = succeeds(img)
		l.shim.Start(t, l.dir)
		id, err := l.kubelet(t.Context(), handler)
		l.Expect(err).NotTo(HaveOccurred())
		l.Expect(l.present(t)).To(BeTrue())
		l.Expect(l.shim.Pulls()).To(BeEmpty())
		l.Expect(l.told.pulled).To(Equal([]string{"husk ok"}))
		second, config := l.sandbox("second", "husk") // its shim is not even there
		l.Expect((&kubelet{node: l.node, policy: "IfNotPresent", gate: true, handler: "husk"}).start(t, second, config)).To(Succeed())
		l.Expect(l.registry.asked).To(HaveLen(1))
		// Image volumes are the shim's as ever.
		req := (&kubelet{node: l.node}).createRequest(id, second, config)
		req.Config.Mounts = []*cri.Mount{{ContainerPath: "/v", Image: &cri.ImageSpec{Image: id, UserSpecifiedImage: appImage}}}
		_, err = l.CreateContainer(t.Context(), req)
		l.Expect(err).NotTo(HaveOccurred())
		l.Expect(l.lastCreated().Annotations).To(HaveKey(annotations.ImageMounts))
		l.Expect(slices.ContainsFunc(l.lastCreated().Mounts, func(m *cri.Mount) bool { return m.GetImage() != nil })).To(BeFalse())
	}
}
