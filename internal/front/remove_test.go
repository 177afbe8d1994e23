package front_test

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
)

// TestRefusedRemovalLeavesEverything: an image ID that both CRI-O and husk hold, and
// that one of the two will not give up.
func TestRefusedRemovalLeavesEverything(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"CRI-O's is in use", "the record is in use", "one of two records is in use"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, front.Config{})
			n.registry.publish(appImage, "web", "")
			id, records := n.pull(appImage), 1
			sandbox, _ := n.sandbox("pod", "husk")
			want := codes.FailedPrecondition
			switch name {
			case "CRI-O's is in use":
				n.crio.inUse = id
				want = codes.Unknown // its own words
			case "one of two records is in use":
				n.registry.publish(appImage+"b", "web", "twin")
				n.Expect(n.pull(appImage + "b")).To(Equal(id))
				records = 2
				fallthrough
			default:
				_, err := n.create(t, sandbox, &cri.ImageSpec{Image: id, UserSpecifiedImage: appImage})
				n.Expect(err).NotTo(HaveOccurred())
			}
			if records == 1 {
				n.addImage(appImage, id, nil, "web")
			}
			_, err := n.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
			n.Expect(status.Code(err)).To(Equal(want), "%v", err)
			n.Expect(n.records.List(t.Context())).To(HaveLen(records))
			n.Expect(n.crio.removed).To(BeEmpty())
			n.Expect(n.crio.images).To(HaveLen(2 - records))
		})
	}
}

// TestRemovalMeansWhatStatusShows: a prefix that CRI-O completes to another image.
func TestRemovalMeansWhatStatusShows(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.registry.publish(appImage, "web", "")
	id := n.pull(appImage)
	n.addImage("registry.local/other:1", id[:12]+hexID('0')[12:], nil, "")
	_, err := n.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id[:12]}})
	n.Expect(err).NotTo(HaveOccurred())
	n.Expect(n.crio.removed).To(Equal([]string{id[:12]}))
	n.Expect(n.records.List(t.Context())).To(HaveLen(1))
}
