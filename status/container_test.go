package status

import (
	"fmt"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

var (
	storageID = strings.Repeat("a", 64)
	imageID   = strings.Repeat("b", 64)
)

const (
	userImage = "registry.local/app:1"
	imageRef  = "registry.local/app@sha256:cc"
)

func notes() map[string]string {
	return map[string]string{
		annotations.RecordID: storageID, annotations.ImageID: imageID,
		annotations.ImageRef: imageRef, annotations.UserImage: userImage, "other": "kept",
	}
}

// crioStatus is what CRI-O 1.34 reports for a container made from a record.
func crioStatus(notes map[string]string) *cri.ContainerStatus {
	return &cri.ContainerStatus{
		Id: "c1", Annotations: notes, Labels: map[string]string{"l": "1"}, ExitCode: -1, LogPath: "/log",
		Image: &cri.ImageSpec{UserSpecifiedImage: "app"}, ImageRef: storageID, ImageId: storageID,
	}
}

func encoded(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return b
}

func noFinder(string) (Origin, bool, error) { return Origin{}, false, nil }

func TestEditContainerStatus(t *testing.T) {
	t.Parallel()
	ordinary := crioStatus(map[string]string{"other": "kept"})
	ordinary.Image.Image = "busybox"
	ordinary.User = &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: 1000}}
	forged := crioStatus(notes())
	forged.ImageId, forged.ImageRef = imageID, imageID
	half := crioStatus(notes())
	delete(half.Annotations, annotations.ImageRef)
	placeholder := crioStatus(notes())
	placeholder.User = &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: 65534, Gid: 65534}}
	noImage := crioStatus(notes())
	noImage.Image = nil
	want := crioStatus(notes())
	want.Image.Image, want.ImageRef, want.ImageId, want.Image.RuntimeHandler = userImage, imageRef, imageID, "husk"
	wantNoImage := crioStatus(notes())
	wantNoImage.Image, wantNoImage.ImageRef, wantNoImage.ImageId = &cri.ImageSpec{Image: userImage, RuntimeHandler: "husk"}, imageRef, imageID
	bare := crioStatus(nil)
	found := crioStatus(nil)
	found.Image.Image, found.ImageRef, found.ImageId, found.Image.RuntimeHandler = "found", "ref", "id", "husk"
	finder := func(id string) (Origin, bool, error) {
		return Origin{StorageID: storageID, ImageID: "id", ImageRef: "ref", UserImage: "found"}, id == storageID, nil
	}
	for _, c := range []struct {
		name     string
		in, want *cri.ContainerStatus
		find     Finder
	}{
		{"made from a record", crioStatus(notes()), want, noFinder},
		{"no image spec at all", noImage, wantNoImage, noFinder},
		{"the user is CRI-O's placeholder", placeholder, want, noFinder},
		{"ordinary", ordinary, nil, finder},
		{"annotations that CRI-O contradicts", forged, nil, noFinder},
		{"half of the annotations", half, nil, noFinder},
		{"no annotations, a record", bare, found, finder},
		{"no annotations, no record", bare, nil, noFinder},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			future := protowire.AppendString(protowire.AppendTag(nil, 9999, protowire.BytesType), "\xff no utf-8")
			in := append(encoded(t, &cri.ContainerStatusResponse{Status: c.in, Info: map[string]string{"i": "j"}}), future...)
			out, err := EditContainerStatus(in, View{Handler: "husk", Find: c.find})
			g.Expect(err).NotTo(HaveOccurred())
			if c.want == nil {
				g.Expect(&out[0]).To(BeIdenticalTo(&in[0]), "untouched bytes")
				return
			}
			got := new(cri.ContainerStatusResponse)
			g.Expect(proto.Unmarshal(out, got)).To(Succeed())
			g.Expect(proto.Equal(got.Status, c.want)).To(BeTrue(), "%v", got.Status)
			g.Expect(got.Info).To(HaveKey("i"))
			g.Expect(got.ProtoReflect().GetUnknown()).To(BeEquivalentTo(future))

			pod, err := EditPodSandboxStatus(encoded(t, &cri.PodSandboxStatusResponse{ContainersStatuses: []*cri.ContainerStatus{ordinary, c.in}}), View{Handler: "husk", Find: c.find})
			g.Expect(err).NotTo(HaveOccurred())
			podStatus := new(cri.PodSandboxStatusResponse)
			g.Expect(proto.Unmarshal(pod, podStatus)).To(Succeed())
			g.Expect(proto.Equal(podStatus.ContainersStatuses[0], ordinary)).To(BeTrue())
			g.Expect(proto.Equal(podStatus.ContainersStatuses[1], c.want)).To(BeTrue())

			raw, err := EditContainerEvent(encoded(t, &cri.ContainerEventResponse{ContainersStatuses: []*cri.ContainerStatus{c.in}}), View{Handler: "husk", Find: c.find})
			g.Expect(err).NotTo(HaveOccurred())
			event := new(cri.ContainerEventResponse)
			g.Expect(proto.Unmarshal(raw, event)).To(Succeed())
			g.Expect(proto.Equal(event.ContainersStatuses[0], c.want)).To(BeTrue())
		})
	}
}

func TestEditFailures(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := EditContainerStatus([]byte{0x0a, 0xff}, View{Find: noFinder})
	g.Expect(errdefs.Is(err, errdefs.Internal)).To(BeTrue())
	_, err = EditContainers(append([]byte{0x0a, 0xff}, annotations.RecordID...), View{})
	g.Expect(errdefs.Is(err, errdefs.Internal)).To(BeTrue())
	failing := func(string) (Origin, bool, error) {
		return Origin{}, false, errdefs.New(errdefs.Unavailable, "look", nil)
	}
	_, err = EditContainerStatus(encoded(t, &cri.ContainerStatusResponse{Status: crioStatus(nil)}), View{Find: failing})
	g.Expect(errdefs.Is(err, errdefs.Unavailable)).To(BeTrue())
}

// listOf is a node's list of containers, the first guests of them made from records.
func listOf(total, guests int) *cri.ListContainersResponse {
	list := new(cri.ListContainersResponse)
	for i := range total {
		c := &cri.Container{
			Id: fmt.Sprint(i), Image: &cri.ImageSpec{Image: storageID}, ImageRef: storageID, ImageId: storageID,
			Labels: map[string]string{}, Annotations: map[string]string{},
		}
		if i < guests {
			c.Annotations = notes()
		}
		for j := range 5 { // about what kubelet sets
			c.Labels[fmt.Sprint("io.kubernetes.label.", j)] = "some-value-of-usual-size"
			c.Annotations[fmt.Sprint("io.kubernetes.annotation.", j)] = "some-value-of-usual-size"
		}
		list.Containers = append(list.Containers, c)
	}
	return list
}

func TestEditContainers(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	in := encoded(t, listOf(3, 0))
	out, err := EditContainers(in, View{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(&out[0]).To(BeIdenticalTo(&in[0]))
	want := listOf(3, 2)
	out, err = EditContainers(encoded(t, want), View{Handler: "kata"})
	g.Expect(err).NotTo(HaveOccurred())
	for _, c := range want.Containers[:2] {
		c.Image.Image, c.ImageRef, c.ImageId, c.Image.RuntimeHandler = userImage, imageRef, imageID, "kata"
	}
	got := new(cri.ListContainersResponse)
	g.Expect(proto.Unmarshal(out, got)).To(Succeed())
	g.Expect(proto.Equal(got, want)).To(BeTrue())
}

// BenchmarkEditContainers is what the front adds to a list of 100 containers.
func BenchmarkEditContainers(b *testing.B) {
	for _, guests := range []int{0, 100} {
		answer := encoded(b, listOf(100, guests))
		b.Run(fmt.Sprintf("guests=%d", guests), func(b *testing.B) {
			b.SetBytes(int64(len(answer)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := EditContainers(answer, View{Handler: "husk"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzEditContainerStatus(f *testing.F) {
	f.Add(encoded(f, &cri.ContainerStatusResponse{Status: crioStatus(notes())}))
	f.Add([]byte{0x0a, 0x03, 0x08, 0x96, 0x01})
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := EditContainerStatus(in, View{Handler: "husk", Find: noFinder})
		if err != nil {
			return
		}
		// What could be decoded before can be decoded after.
		if proto.Unmarshal(in, new(cri.ContainerStatusResponse)) == nil {
			NewWithT(t).Expect(proto.Unmarshal(out, new(cri.ContainerStatusResponse))).To(Succeed())
		}
	})
}
