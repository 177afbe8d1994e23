package registry

import (
	"testing"

	. "github.com/onsi/gomega"
)

func TestInsecure(t *testing.T) {
	t.Parallel()
	in := parseInsecure([]string{"192.0.2.0/24", "registry.test:5000", "plain.test"}, false)
	for host, want := range map[string]bool{
		"127.0.0.1:5000":     true,
		"127.3.2.1":          true,
		"192.0.2.7:5000":     true,
		"192.0.3.7:5000":     false,
		"registry.test:5000": true,
		"registry.test:5001": false,
		"registry.test":      false,
		"plain.test":         true,
		"no-such-host.test":  false,
	} {
		NewWithT(t).Expect(in.has(t.Context(), host)).To(Equal(want), host)
	}
}

// In a pod's network its owner answers for every name: with an address that is insecure,
// the answers of any registry could be his.
func TestNamesInAnUntrustedNetwork(t *testing.T) {
	t.Parallel()
	for _, untrusted := range []bool{false, true} {
		g := NewWithT(t)
		in := parseInsecure([]string{"plain.test"}, untrusted)
		g.Expect(in.has(t.Context(), "localhost")).To(Equal(!untrusted))
		g.Expect(in.has(t.Context(), "localhost:5000")).To(Equal(!untrusted))
		g.Expect(in.has(t.Context(), "127.0.0.1:5000")).To(BeTrue(), "nobody has to be asked")
		g.Expect(in.has(t.Context(), "plain.test")).To(BeTrue(), "the node says so")
	}
}
