package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestBackOff: a pull that failed is not made again before its time, the next sync
// says why, and the times double up to a bound.
func TestBackOff(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := &runtime{remote: map[string]*cri.Image{imageName: {Id: "id", Size: 1}}, password: "right"}
	k := serve(t, r)
	p := admitted(g, k, pod{Policy: "Always", Secrets: []secret{{Username: "u", Password: "wrong"}}})
	sync := func(later time.Duration, reason string, pulls int) containerSynced {
		k.cri.calls, k.node.After = nil, later
		result, err := k.startContainers(t.Context(), p)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(result.Containers).To(HaveLen(1))
		g.Expect([]any{result.Containers[0].Reason, result.Pulls}).To(Equal([]any{reason, pulls}), "%s", later)
		return result.Containers[0]
	}
	sync(0, "ErrImagePull", 1)
	g.Expect(sync(5*time.Second, "ImagePullBackOff", 0).Message).To(And(ContainSubstring("Back-off pulling image"), ContainSubstring("wrong")))
	sync(11*time.Second, "ErrImagePull", 1)
	sync(30*time.Second, "ImagePullBackOff", 0) // twice as long now
	sync(32*time.Second, "ErrImagePull", 1)
	r.remote = nil
	g.Expect(sync(80*time.Second, "RegistryUnavailable", 1).Message).To(HavePrefix("image pull failed for " + imageName + " because the registry is unavailable: "))
	for later := 10 * time.Minute; later < 2*time.Hour; later += 301 * time.Second {
		sync(later, "RegistryUnavailable", 1)
		sync(later+time.Second, "ImagePullBackOff", 0)
	}
	r.remote, p.Secrets[0].Password = map[string]*cri.Image{imageName: {Id: "id", Size: 1}}, "right"
	sync(3*time.Hour, "", 1)
	result, err := k.startContainers(t.Context(), p)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Containers).To(BeEmpty(), "what runs is left alone")
}

// TestSyncCommand: another run takes new secrets, and another clock.
func TestSyncCommand(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := &runtime{remote: map[string]*cri.Image{imageName: {Id: "id", Size: 1}}, password: "right"}
	k := serve(t, r)
	reason := func(verb string, args ...string) any {
		var out bytes.Buffer
		all := append([]string{verb, "--socket", strings.TrimPrefix(k.cri.conn.Target(), "unix://"), "--dir", k.node.Root, "--name", "p"}, args...)
		g.Expect(run(t.Context(), all, &out)).To(Succeed())
		var got synced
		g.Expect(json.Unmarshal(out.Bytes(), &got)).To(Succeed())
		g.Expect(got.Containers).To(HaveLen(1))
		return got.Containers[0].Reason
	}
	g.Expect(reason("run", "--creds", "u:wrong", "--container", "c="+imageName)).To(Equal("ErrImagePull"))
	g.Expect(reason("sync", "--creds", "u:right")).To(Equal("ImagePullBackOff"))
	g.Expect(reason("sync", "--after", "11s")).To(BeEmpty(), "the secret of the last sync is the pod's now")
}
