package status

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// captured reads an answer of CRI-O 1.34.0 to GET /containers/<id>, taken on a test
// node: of a guest-pull container, of an ordinary one, and of the sandbox of the first.
func captured(t testing.TB, name string) []byte {
	t.Helper()
	answer, err := os.ReadFile(filepath.Join("testdata", "container-"+name+".json"))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return answer
}

// with returns the answer with one field set, or without it.
func with(t testing.TB, answer []byte, field string, value any) []byte {
	t.Helper()
	g := NewWithT(t)
	fields := map[string]json.RawMessage{}
	g.Expect(json.Unmarshal(answer, &fields)).To(Succeed())
	encoded, err := json.Marshal(value)
	g.Expect(err).NotTo(HaveOccurred())
	if fields[field] = encoded; value == nil {
		delete(fields, field)
	}
	changed, err := json.Marshal(fields)
	g.Expect(err).NotTo(HaveOccurred())
	return changed
}

func TestEditContainerInfo(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	guest := captured(t, "guest")
	var before struct {
		ImageRef    string            `json:"image_ref"`
		Annotations map[string]string `json:"annotations"`
	}
	g.Expect(json.Unmarshal(guest, &before)).To(Succeed())
	out, err := EditContainerInfo(guest, noFinder)
	g.Expect(err).NotTo(HaveOccurred())
	want := with(t, guest, "image", before.Annotations[annotations.UserImage])
	want = with(t, want, "image_ref", before.Annotations[annotations.ImageRef])
	g.Expect(out).To(MatchJSON(want))
	// Numbers keep every digit: created_time has more than a float64 holds.
	var after struct {
		Image   string `json:"image"`
		Created int64  `json:"created_time"`
	}
	g.Expect(json.Unmarshal(out, &after)).To(Succeed())
	g.Expect(after.Image).To(Equal("10.213.1.1:5000/app:1"))
	g.Expect(after.Created).To(Equal(int64(1795445295296835470)))

	// Made behind the front's back: no annotation says so.
	found := func(id string) (Origin, bool, error) {
		return Origin{StorageID: before.ImageRef, ImageRef: "ref", UserImage: "found"}, id == before.ImageRef, nil
	}
	out, err = EditContainerInfo(with(t, guest, "annotations", nil), found)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(json.Unmarshal(out, &after)).To(Succeed())
	g.Expect(after.Image).To(Equal("found"))
	failing := func(string) (Origin, bool, error) {
		return Origin{}, false, errdefs.New(errdefs.Unavailable, "look", nil)
	}
	_, err = EditContainerInfo(with(t, guest, "annotations", nil), failing)
	g.Expect(errdefs.Is(err, errdefs.Unavailable)).To(BeTrue())
}

func TestEditContainerInfoLeavesTheRest(t *testing.T) {
	t.Parallel()
	guest := captured(t, "guest")
	forged := map[string]string{}
	for key := range notes() {
		forged[key] = "evil"
	}
	for name, answer := range map[string][]byte{
		"ordinary":                       captured(t, "plain"),
		"ordinary that claims a record":  with(t, captured(t, "plain"), "annotations", forged),
		"sandbox":                        captured(t, "sandbox"),
		"half of the annotations":        with(t, guest, "annotations", map[string]string{annotations.RecordID: "x"}),
		"another image than it claims":   with(t, guest, "image_ref", imageID),
		"annotations of a wrong type":    with(t, guest, "annotations", []int{1}),
		"an error that is no container":  []byte("can't find the container"),
		"another kind of JSON":           []byte(`["image"]`),
		"null":                           []byte("null"),
		"nothing":                        {},
		"an info without image_ref":      []byte(`{"storage_driver":"overlay"}`),
		"an image_ref that is no string": with(t, guest, "image_ref", 7),
	} {
		g := NewWithT(t)
		out, err := EditContainerInfo(answer, noFinder)
		g.Expect(err).NotTo(HaveOccurred(), name)
		g.Expect(same(answer, out)).To(BeTrue(), name)
	}
}

// fields decodes an object and keeps numbers as they are written, of any size.
func fields(t *testing.T, object []byte) map[string]any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(object))
	decoder.UseNumber()
	decoded := map[string]any{}
	NewWithT(t).Expect(decoder.Decode(&decoded)).To(Succeed())
	return decoded
}

func FuzzEditContainerInfo(f *testing.F) {
	for _, name := range []string{"guest", "plain", "sandbox"} {
		f.Add(captured(f, name))
	}
	f.Add([]byte(`{"image":"","image_ref":"x","image_ref":"y"}`))
	f.Add([]byte(`{"image":"","image_ref":"x","created_time":17E5445295296835470}`))
	f.Add([]byte(`{"image":"","image_ref":"x","created_time":1795445295296835470,"annotations":{"a":"b"},"future":[null,"<"]}`))
	find := func(id string) (Origin, bool, error) {
		return Origin{StorageID: id, ImageRef: "r", UserImage: "u"}, true, nil
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		g := NewWithT(t)
		out, err := EditContainerInfo(in, find)
		g.Expect(err).NotTo(HaveOccurred())
		if same(in, out) {
			return
		}
		// What changes is an object, and still one, with the same fields.
		before, after := fields(t, in), fields(t, out)
		delete(after, "image")
		delete(before, "image")
		delete(after, "image_ref")
		delete(before, "image_ref")
		g.Expect(after).To(Equal(before))
	})
}
