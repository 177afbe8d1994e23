package forward

import (
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/mem"
)

// TestContains cuts one message at every place, and in pieces of every size: what
// is in it is found wherever the cuts fall, and what is not, is not.
func TestContains(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	message := []byte("a list of containers with husk.dev/record-id in it")
	frame := func(cuts ...int) *Frame {
		f, from := new(Frame), 0
		for _, to := range append(cuts, len(message)) {
			f.buffers = append(f.buffers, mem.SliceBuffer(message[from:to]))
			from = to
		}
		return f
	}
	check := func(f *Frame) {
		g.Expect(f.Contains([]byte("husk.dev/record-id"))).To(BeTrue())
		g.Expect(f.Contains([]byte("a"))).To(BeTrue())
		g.Expect(f.Contains(message)).To(BeTrue())
		g.Expect(f.Contains([]byte("husk.dev/record-ix"))).To(BeFalse())
		g.Expect(f.Contains([]byte("itit"))).To(BeFalse())
		g.Expect(f.Bytes()).To(Equal(message), "searching takes nothing away")
	}
	for at := range len(message) + 1 {
		check(frame(at))
	}
	for size := 1; size < len(message); size++ {
		var cuts []int
		for at := size; at < len(message); at += size {
			cuts = append(cuts, at)
		}
		check(frame(cuts...))
	}
	g.Expect(new(Frame).Contains([]byte("a"))).To(BeFalse())
}
