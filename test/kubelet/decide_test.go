package main

import (
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVerifyRunAsNonRoot(t *testing.T) {
	t.Parallel()
	id := func(v int64) *int64 { return &v }
	for name, c := range map[string]struct {
		pod   pod
		image user
		ok    bool
	}{
		"not asked for":      {pod{}, user{uid: id(0)}, true},
		"a uid":              {pod{RunAsNonRoot: true}, user{uid: id(5)}, true},
		"root":               {pod{RunAsNonRoot: true}, user{uid: id(0)}, false},
		"a name":             {pod{RunAsNonRoot: true}, user{name: "web"}, false},
		"the pod's own":      {pod{RunAsNonRoot: true, RunAsUser: id(7)}, user{name: "web"}, true},
		"the pod's own root": {pod{RunAsNonRoot: true, RunAsUser: id(0)}, user{uid: id(5)}, false},
	} {
		NewWithT(t).Expect(verifyRunAsNonRoot(&c.pod, c.image) == nil).To(Equal(c.ok), name)
	}
}

// TestMustAttempt is pullmanager's table for NeverVerifyPreloadedImages.
func TestMustAttempt(t *testing.T) {
	t.Parallel()
	alice := secret{Namespace: "alice", Name: "s", Username: "alice", Password: "1"}
	rotated := secret{Namespace: "alice", Name: "s", Username: "alice", Password: "2"}
	copied := secret{Namespace: "bob", Name: "s", Username: "alice", Password: "1"}
	bob := secret{Namespace: "bob", Name: "s", Username: "bob", Password: "1"}
	pulledBy := func(s *secret) *pullRecords {
		r := new(pullRecords)
		r.intend(imageName)
		r.record(imageName, "id", s)
		r.settled(imageName)
		return r
	}
	underWay := new(pullRecords)
	underWay.intend(imageName)
	both := pulledBy(&alice)
	both.record(imageName, "id", nil)
	both.record(imageName, "id", &alice)
	for name, c := range map[string]struct {
		records *pullRecords
		image   string
		secrets []secret
		must    bool
	}{
		"preloaded":                  {new(pullRecords), imageName, nil, false},
		"its pull is under way":      {underWay, imageName, []secret{alice}, true},
		"the same secret":            {pulledBy(&alice), imageName, []secret{bob, alice}, false},
		"the same secret, rotated":   {pulledBy(&alice), imageName, []secret{rotated}, false},
		"the same credential":        {pulledBy(&alice), imageName, []secret{copied}, false},
		"another tenant":             {pulledBy(&alice), imageName, []secret{bob}, true},
		"nothing":                    {pulledBy(&alice), imageName, nil, true},
		"another tag":                {pulledBy(&alice), "registry.local/app:2", []secret{alice}, false},
		"another repository":         {pulledBy(&alice), "registry.local/other:1", []secret{alice}, true},
		"pulled without a secret":    {pulledBy(nil), imageName, nil, false},
		"pulled with and without it": {both, imageName, []secret{bob}, false},
	} {
		NewWithT(t).Expect(c.records.mustAttempt(c.image, "id", c.secrets)).To(Equal(c.must), name)
	}
}

func TestRecordsArePruned(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	file := recordFile{filepath.Join(t.TempDir(), "pulled.json")}
	g.Expect(file.update(func(r *pullRecords) {
		r.record(imageName, "left", nil)
		r.record(imageName, "gone", nil)
	})).To(Succeed())
	began := time.Now()
	g.Expect(file.update(func(r *pullRecords) {
		r.record("registry.local/new:1", "new", nil)
		r.prune([]string{"left"}, began)
	})).To(Succeed())
	g.Expect(file.update(func(r *pullRecords) {
		g.Expect(r.Pulled).To(And(HaveLen(2), HaveKey("left"), HaveKey("new")))
	})).To(Succeed())
}

func TestEvictable(t *testing.T) {
	t.Parallel()
	image := func(id, handler string, pinned bool) *cri.Image {
		return &cri.Image{Id: id, Pinned: pinned, Spec: &cri.ImageSpec{RuntimeHandler: handler}}
	}
	images := []*cri.Image{image("a", "husk", false), image("b", "husk", false), image("a", "", false), image("p", "", true), image("q", "husk", false), image("q", "", true)}
	for name, c := range map[string]struct {
		gate       bool
		used, want []string
	}{
		"by ID":               {false, []string{"a"}, []string{"b"}}, // q: the last entry is pinned
		"by ID, nothing used": {false, nil, []string{"b", "a"}},
		"by ID and handler":   {true, []string{"a"}, []string{"a,husk", "b,husk", "q,husk"}},
		"the record is used":  {true, []string{"a,husk"}, []string{"b,husk", "a", "q,husk"}},
	} {
		k := &kubelet{node: node{Gate: c.gate}}
		var got []string
		for _, r := range k.evictable(images, c.used) {
			got = append(got, r.key)
		}
		NewWithT(t).Expect(got).To(Equal(c.want), name)
	}
}

func TestDefaultTag(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	digest := "registry.local/app@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for image, want := range map[string]string{"app": "app:latest", "127.0.0.1:5000/app": "127.0.0.1:5000/app:latest", imageName: imageName, digest: digest} {
		got, err := withDefaultTag(image)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(got).To(Equal(want))
	}
	_, err := withDefaultTag("No Name")
	g.Expect(err).To(HaveOccurred())
}
