package front_test

import (
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
)

// viewers are the ways in which a client does, or does not, say for which runtime
// handler (KEP-4216) it asks.
func viewers() map[string]func(*cri.ImageSpec) {
	hint := func(handler string) func(*cri.ImageSpec) {
		return func(s *cri.ImageSpec) {
			s.Annotations = podAnnotations()
			s.Annotations[annotations.RuntimeHandler] = handler
		}
	}
	field := func(handler string) func(*cri.ImageSpec) {
		return func(s *cri.ImageSpec) { s.Annotations, s.RuntimeHandler = podAnnotations(), handler }
	}
	return map[string]func(*cri.ImageSpec){
		"nothing":     func(*cri.ImageSpec) {},
		"annotations": func(s *cri.ImageSpec) { s.Annotations = podAnnotations() },
		"husk":        field("husk"), "kata": field("kata"), "runc": field("runc"), "moon": field("moon"),
		"hint husk": hint("husk"), "hint runc": hint("runc"), "hint moon": hint("moon"),
		"husk over hint": func(s *cri.ImageSpec) { hint("runc")(s); s.RuntimeHandler = "husk" },
		"runc over hint": func(s *cri.ImageSpec) { hint("husk")(s); s.RuntimeHandler = "runc" },
	}
}

// outcomes says, for each viewer, what a method does on a node that holds the image:
// not at all / as a record / in full / as both.
type outcomes map[string]string

const refused = "refused/refused/refused/refused" // InvalidArgument

// TestRuntimeHandlerIsHonoured goes through every combination of method, viewer and
// what the node holds.
func TestRuntimeHandlerIsHonoured(t *testing.T) {
	t.Parallel()
	const (
		guestSees, plainSees = "-/record/-/record", "-/-/crio/crio"
		guestPulls           = "registry/registry/registry/registry"
		crioPulls            = "crio/crio/crio/crio"
	)
	for method, want := range map[string]outcomes{
		"ImageStatus by reference": {
			"nothing": "-/record/crio/crio", "annotations": plainSees, "husk": guestSees, "kata": guestSees, "runc": plainSees,
			"hint husk": guestSees, "hint runc": plainSees, "husk over hint": guestSees, "runc over hint": plainSees,
		},
		"ImageStatus by ID": {
			"nothing": "-/record/crio/crio", "annotations": "-/record/crio/crio", "husk": guestSees, "kata": guestSees, "runc": plainSees,
			"hint husk": guestSees, "hint runc": plainSees, "husk over hint": guestSees, "runc over hint": plainSees,
		},
		"ListImages": {
			"nothing": "-/record/crio/record+crio", "annotations": "-/record/crio/record+crio", "husk": guestSees, "kata": guestSees,
			"runc": plainSees, "hint husk": guestSees, "hint runc": plainSees, "husk over hint": guestSees, "runc over hint": plainSees,
		},
		"PullImage": {
			"nothing": crioPulls, "annotations": crioPulls, "husk": guestPulls, "kata": guestPulls, "runc": crioPulls,
			"hint husk": guestPulls, "hint runc": crioPulls, "husk over hint": guestPulls, "runc over hint": crioPulls,
		},
		// What is removed, and whether CRI-O was asked, which it is for what nobody has.
		"RemoveImage by reference": {
			"nothing": "crio/record/crio/crio", "annotations": "crio/record/crio/crio", "husk": guestSees, "kata": guestSees,
			"runc": crioPulls, "hint husk": guestSees, "hint runc": crioPulls, "husk over hint": guestSees, "runc over hint": crioPulls,
		},
		"RemoveImage by ID": {
			"nothing": "crio/record/crio/record+crio", "annotations": "crio/record/crio/record+crio", "husk": guestSees, "kata": guestSees,
			"runc": crioPulls, "hint husk": guestSees, "hint runc": crioPulls, "husk over hint": guestSees, "runc over hint": crioPulls,
		},
	} {
		want["moon"], want["hint moon"] = refused, refused
		for viewer, says := range viewers() {
			for i, holds := range []string{"nothing", "record", "full", "both"} {
				t.Run(method+"/"+viewer+"/"+holds, func(t *testing.T) {
					t.Parallel()
					n := newNode(t, front.Config{})
					n.Expect(want).To(HaveKey(viewer))
					n.Expect(n.outcome(t, method, holds, says)).To(Equal(strings.Split(want[viewer], "/")[i]))
				})
			}
		}
	}
}

// outcome makes one call on a node that holds the image in the given way.
func (n *node) outcome(t *testing.T, method, holds string, says func(*cri.ImageSpec)) string {
	t.Helper()
	id := n.registry.publish(appImage, "web", "").ConfigDigest.ImageID().String()
	if holds == "record" || holds == "both" {
		n.pull(appImage)
	}
	if holds == "full" || holds == "both" {
		n.addImage(appImage, id, nil, "web")
	}
	n.registry.asked = nil
	spec := &cri.ImageSpec{Image: appImage}
	if strings.HasSuffix(method, "by ID") {
		spec.Image = id
	}
	says(spec)
	before, err := n.records.List(t.Context())
	n.Expect(err).NotTo(HaveOccurred())
	var shown []*cri.Image
	switch name, _, _ := strings.Cut(method, " "); name {
	case "ImageStatus":
		var answer *cri.ImageStatusResponse
		if answer, err = n.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec}); answer.GetImage() != nil {
			shown = append(shown, answer.Image)
		}
	case "ListImages":
		var answer *cri.ListImagesResponse
		answer, err = n.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: spec}})
		shown = answer.GetImages()
		if err == nil {
			shown = n.lists(t, &cri.ImageFilter{Image: spec}) // and StreamImages shows the same
		}
	case "PullImage":
		_, err = n.PullImage(t.Context(), &cri.PullImageRequest{Image: spec})
	case "RemoveImage":
		_, err = n.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec})
	}
	if status.Code(err) == codes.InvalidArgument {
		return "refused"
	}
	n.Expect(err).NotTo(HaveOccurred())
	var did []string
	for _, image := range shown {
		if image.GetSpec().GetRuntimeHandler() != "" {
			did = append(did, "record")
		} else {
			did = append(did, "crio")
		}
	}
	if len(n.registry.asked) > 0 {
		did = append(did, "registry")
	}
	after, err := n.records.List(t.Context())
	n.Expect(err).NotTo(HaveOccurred())
	if len(after) < len(before) {
		did = append(did, "record")
	}
	if len(n.crio.pulled)+len(n.crio.removed) > 0 {
		did = append(did, "crio")
	}
	if len(did) == 0 {
		return "-"
	}
	return strings.Join(did, "+")
}
