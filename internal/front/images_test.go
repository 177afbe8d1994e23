package front_test

import (
	"errors"
	"io"
	"slices"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/pkg/annotations"
)

func (n *node) status(t *testing.T, spec *cri.ImageSpec) *cri.Image {
	t.Helper()
	answer, err := n.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec, Verbose: true})
	n.Expect(err).NotTo(HaveOccurred())
	return answer.Image
}

func TestImageStatusPresence(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	rec := n.registry.publish(appImage, "web:staff", "").Record()
	id := n.pull(appImage)
	n.Expect(id).To(Equal(rec.ImageID().String()))
	pinned := "registry.local/app@" + rec.Manifest.String()
	hint := func(handler string) map[string]string { return map[string]string{annotations.RuntimeHandler: handler} }

	for name, spec := range map[string]*cri.ImageSpec{
		"user query":                 {Image: appImage},
		"user query by digest":       {Image: pinned},
		"image ID":                   {Image: id},
		"image ID of a presence":     {Image: "sha256:" + id, Annotations: podAnnotations()},
		"ID prefix, as crictl shows": {Image: id[:13]},
		"handler":                    {Image: appImage, RuntimeHandler: "husk", Annotations: podAnnotations()},
		"handler by annotation":      {Image: appImage, Annotations: hint("kata")},
	} {
		image := n.status(t, spec)
		n.Expect(image).NotTo(BeNil(), name)
		n.Expect(image.Id).To(Equal(id), name)
		n.Expect(image.Username).To(Equal("web"), name)
		n.Expect(image.RepoTags).To(Equal([]string{appImage}), name)
		n.Expect(image.RepoDigests).To(Equal([]string{pinned}), name)
		n.Expect(image.Spec.RuntimeHandler).NotTo(BeEmpty(), name)
	}
	for name, spec := range map[string]*cri.ImageSpec{
		"presence check":            {Image: appImage, Annotations: podAnnotations()},
		"ordinary handler":          {Image: appImage, RuntimeHandler: "runc"},
		"ordinary handler, by ID":   {Image: id, RuntimeHandler: "runc"},
		"storage ID":                {Image: rec.StorageID.String()},
		"storage ID, with handler":  {Image: rec.StorageID.String(), RuntimeHandler: "runc"},
		"other tag":                 {Image: "registry.local/app:2"},
		"other tag, guest handler":  {Image: "registry.local/app:2", RuntimeHandler: "husk"},
		"ambiguous or short prefix": {Image: id[:2]},
	} {
		n.Expect(n.status(t, spec)).To(BeNil(), name)
	}
	_, err := n.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: appImage, RuntimeHandler: "moon"}})
	n.Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
	_, err = n.ImageStatus(t.Context(), &cri.ImageStatusRequest{})
	n.Expect(err).To(MatchError(ContainSubstring("no image specified"))) // CRI-O's own

	// CRI-O's image comes first for everybody who does not name a handler.
	n.addImage(appImage, hexID('c'), nil, "")
	n.Expect(n.status(t, &cri.ImageSpec{Image: appImage}).Id).To(Equal(hexID('c')))
	n.Expect(n.status(t, &cri.ImageSpec{Image: appImage, Annotations: podAnnotations()}).Id).To(Equal(hexID('c')))
	n.Expect(n.status(t, &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"}).Id).To(Equal(id))
}

// lists returns what ListImages and StreamImages, which must agree, show.
func (n *node) lists(t *testing.T, filter *cri.ImageFilter) []*cri.Image {
	t.Helper()
	list, err := n.ListImages(t.Context(), &cri.ListImagesRequest{Filter: filter})
	n.Expect(err).NotTo(HaveOccurred())
	stream, err := n.StreamImages(t.Context(), &cri.StreamImagesRequest{Filter: filter})
	n.Expect(err).NotTo(HaveOccurred())
	var streamed []*cri.Image
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		n.Expect(err).NotTo(HaveOccurred())
		n.Expect(part.Images).NotTo(BeEmpty())
		streamed = append(streamed, part.Images...)
	}
	n.Expect(ids(streamed)).To(Equal(ids(list.Images)))
	return list.Images
}

func ids(images []*cri.Image) []string {
	ids := make([]string, 0, len(images))
	for _, i := range images {
		ids = append(ids, i.GetId()+"/"+i.GetSpec().GetRuntimeHandler())
	}
	return ids
}

func TestListImages(t *testing.T) {
	t.Parallel()
	n := newNode(t, front.Config{})
	n.Expect(n.lists(t, nil)).To(BeEmpty())
	rec := n.registry.publish(appImage, "web", "").Record()
	id := n.pull(appImage)
	n.Expect(ids(n.lists(t, nil))).To(Equal([]string{id + "/husk"}))
	n.addImage("registry.local/other:1", hexID('d'), nil, "")
	n.addImage(appImage, id, nil, "web") // the same image in full

	// True entries first: kubelet without the gate keeps the last size of an ID.
	n.Expect(ids(n.lists(t, nil))).To(Equal([]string{id + "/husk", hexID('d') + "/", id + "/"}))
	filter := func(spec *cri.ImageSpec) *cri.ImageFilter { return &cri.ImageFilter{Image: spec} }
	n.Expect(ids(n.lists(t, filter(&cri.ImageSpec{Image: "registry.local/other:1"})))).To(Equal([]string{hexID('d') + "/"}))
	n.Expect(ids(n.lists(t, filter(&cri.ImageSpec{Image: appImage})))).To(Equal([]string{id + "/husk", id + "/"}))
	n.Expect(ids(n.lists(t, filter(&cri.ImageSpec{RuntimeHandler: "kata"})))).To(Equal([]string{id + "/kata"}))
	n.Expect(ids(n.lists(t, filter(&cri.ImageSpec{RuntimeHandler: "runc"})))).To(Equal([]string{hexID('d') + "/", id + "/"}))
	n.Expect(ids(n.lists(t, filter(&cri.ImageSpec{Image: rec.StorageID.String()})))).To(BeEmpty())
}

func TestRemoveImage(t *testing.T) {
	t.Parallel()
	remove := func(n *node, spec *cri.ImageSpec) error {
		_, err := n.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec})
		return err
	}
	for _, c := range []struct {
		name    string
		spec    *cri.ImageSpec // Image "ID" and "STORAGE" stand for the record's
		ordinal bool           // CRI-O holds the image too
		left    []string       // tags of the record
		crio    bool           // CRI-O was asked to remove
	}{
		{"by ID everything goes", &cri.ImageSpec{Image: "ID"}, true, nil, true},
		{"by ID, with handler", &cri.ImageSpec{Image: "ID", RuntimeHandler: "husk"}, true, nil, false},
		{"by reference, CRI-O's first", &cri.ImageSpec{Image: appImage}, true, []string{appImage, appImage + "b"}, true},
		{"by reference, else the record's", &cri.ImageSpec{Image: appImage}, false, []string{appImage + "b"}, false},
		{"by ID, the record alone", &cri.ImageSpec{Image: "ID"}, false, nil, false},
		{"by storage ID", &cri.ImageSpec{Image: "STORAGE"}, false, nil, false},
		{"by reference, with handler", &cri.ImageSpec{Image: appImage, RuntimeHandler: "husk"}, true, []string{appImage + "b"}, false},
		{"by ordinary handler", &cri.ImageSpec{Image: appImage, RuntimeHandler: "runc"}, true, []string{appImage, appImage + "b"}, true},
		{"storage ID, ordinary handler", &cri.ImageSpec{Image: "STORAGE", RuntimeHandler: "runc"}, false, []string{appImage, appImage + "b"}, false},
		{"unknown", &cri.ImageSpec{Image: "registry.local/none:1"}, false, []string{appImage, appImage + "b"}, true},
		{"unknown, with handler", &cri.ImageSpec{Image: "registry.local/none:1", RuntimeHandler: "husk"}, false, []string{appImage, appImage + "b"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, front.Config{})
			n.registry.publish(appImage+"b", "web", "")
			rec := n.registry.publish(appImage, "web", "").Record()
			n.pull(appImage + "b")
			id := n.pull(appImage)
			if c.ordinal {
				n.addImage(appImage, id, nil, "web")
			}
			switch c.spec.Image {
			case "ID":
				c.spec.Image = id
			case "STORAGE":
				c.spec.Image = rec.StorageID.String()
			}
			n.Expect(remove(n, c.spec)).To(Succeed())
			var left []string
			if image := n.status(t, &cri.ImageSpec{Image: id, RuntimeHandler: "husk"}); image != nil {
				left = image.RepoTags
			}
			slices.Sort(left)
			n.Expect(left).To(Equal(c.left))
			n.Expect(len(n.crio.removed) > 0).To(Equal(c.crio))
		})
	}
	t.Run("in use", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, front.Config{})
		rec := n.registry.publish(appImage, "web", "").Record()
		id := n.pull(appImage)
		n.records.SetInUse(rec.StorageID, true)
		for _, name := range []string{id, appImage} {
			n.Expect(status.Code(remove(n, &cri.ImageSpec{Image: name}))).To(Equal(codes.FailedPrecondition))
		}
		n.Expect(n.crio.removed).To(BeEmpty())
	})
}
