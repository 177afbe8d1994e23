package bundles

import (
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestUpdate(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		pod := p.pod(t, "nginx", "side")
		started := time.Now()
		c, err := p.Update(t.Context(), pod[1].ID, func(c *Container) {
			c.State.Status, c.State.StartedAt = StatusRunning, started
			c.Labels["a"] = "b"
		})
		g.Expect(err).NotTo(HaveOccurred())
		want := pod[1]
		want.State = State{Status: StatusRunning, StartedAt: started.UTC().Round(0)}
		want.Labels = map[string]string{"tier": "web", "a": "b"}
		g.Expect(c).To(Equal(want))
		g.Expect(p.List(t.Context())).To(Equal([]Container{pod[0], want, pod[2]}), "the others are as they were")

		for name, change := range map[string]func(*Container){
			"ID":      func(c *Container) { c.ID = NewID() },
			"name":    func(c *Container) { c.Name = "other" },
			"sandbox": func(c *Container) { c.Sandbox = true },
			"pod":     func(c *Container) { c.Pod.IPs[0] = "1.2.3.4" },
			"image":   func(c *Container) { c.Image.Ref = "" },
			"created": func(c *Container) { c.Created = started.Add(time.Hour) },
			"status":  func(c *Container) { c.State.Status = "gone" },
			"size":    func(c *Container) { c.State.Reason = strings.Repeat("x", MaxMetadata) },
		} {
			_, err := p.Update(t.Context(), pod[1].ID, change)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%s: %v", name, err)
		}
		g.Expect(p.Get(t.Context(), "nginx")).To(Equal(want))

		g.Expect(p.UpdatePod(t.Context(), pod[0].ID, func(q *Pod) { q.IPs, q.Netns = nil, "/other" })).To(Succeed())
		members, err := p.Members(t.Context(), "web")
		g.Expect(err).NotTo(HaveOccurred())
		for _, m := range members {
			g.Expect(m.Pod.Netns).To(Equal("/other"))
			g.Expect(m.Pod.IPs).To(BeEmpty())
			g.Expect(m.Pod.CgroupParent).To(Equal("/husk"))
		}
		zone := time.FixedZone("", 3600)
		g.Expect(p.UpdatePod(t.Context(), pod[0].ID, func(q *Pod) { q.Created = q.Created.In(zone) })).To(Succeed(), "the same time")
		_, err = p.Update(t.Context(), pod[1].ID, func(*Container) {})
		g.Expect(err).NotTo(HaveOccurred())
		err = p.UpdatePod(t.Context(), pod[0].ID, func(q *Pod) { q.CgroupParent = "/" })
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
		err = p.UpdatePod(t.Context(), pod[0].ID, func(q *Pod) { q.Name = "new" })
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
		err = p.UpdatePod(t.Context(), NewID(), func(*Pod) {})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
		_, err = p.Update(t.Context(), NewID(), func(*Container) {})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
	})
}

// A killed UpdatePod has changed the sandbox alone.
func TestThePodIsTheSandboxs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	pod := p.pod(t, "nginx")
	changed := pod[0].Pod
	changed.IPs = []string{"10.0.0.9"}
	g.Expect(p.setPod("test", pod[0].ID, changed)).To(Succeed())
	c, err := p.Get(t.Context(), "nginx")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Pod).To(Equal(changed))
	_, err = p.Update(t.Context(), c.ID, func(c *Container) { c.State.Status = StatusExited })
	g.Expect(err).NotTo(HaveOccurred(), "an update of the member minds nothing")
	g.Expect(p.UpdatePod(t.Context(), pod[0].ID, func(q *Pod) { q.Hostname = "h2" })).To(Succeed())
	c, err = p.Get(t.Context(), "nginx")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Pod.IPs).To(Equal([]string{"10.0.0.9"}))
}
