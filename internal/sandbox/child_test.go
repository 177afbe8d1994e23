package sandbox

import (
	"encoding/json"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

// An error that the parent would refuse as too long would lose its kind.
func TestCut(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ message, want string }{
		"short":    {"pull r/a: ö", "pull r/a: ö"},
		"long":     {strings.Repeat("x", 2*maxMessage), strings.Repeat("x", maxMessage-3) + "..."},
		"a rune":   {strings.Repeat("x", maxMessage-4) + "ööx", strings.Repeat("x", maxMessage-4) + "..."},
		"no UTF-8": {strings.Repeat("x\xff", maxMessage/2), strings.Repeat("x?", maxMessage/2)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got := cut(tc.message)
			g.Expect(got).To(Equal(tc.want))
			data, err := json.Marshal(got)
			g.Expect(err).NotTo(HaveOccurred())
			var parents string
			g.Expect(json.Unmarshal(data, &parents)).To(Succeed())
			g.Expect(len(parents)).To(BeNumerically("<=", maxMessage))
		})
	}
}
