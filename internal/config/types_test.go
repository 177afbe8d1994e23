package config

import (
	"math"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

func TestSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "1000": 1000, "7B": 7, "2kB": 2000, "3MB": 3e6, "4GB": 4e9, "1TB": 1e12,
		"1KiB": 1024, "512MiB": 512 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40, "9223372036854775807": math.MaxInt64,
	} {
		g := NewWithT(t)
		var s Size
		g.Expect(s.UnmarshalText([]byte(text))).To(Succeed(), text)
		g.Expect(s).To(Equal(want), text)
		var again Size
		out, err := s.MarshalText()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(again.UnmarshalText(out)).To(Succeed())
		g.Expect(again).To(Equal(s), "%s became %s", text, out)
	}
	NewWithT(t).Expect(Size(512 << 20).String()).To(Equal("512MiB"))
	for _, text := range []string{
		"", "B", "MiB", "-1", "+1", "1.5GiB", "1 GiB", "1e9", "0x10", "1G", "1gib", "1GiBB", "many", "true",
		"9223372036854775808", "8388608TiB", "99999999999999999999",
	} {
		s := Size(7)
		NewWithT(t).Expect(s.UnmarshalText([]byte(text))).NotTo(Succeed(), text)
		NewWithT(t).Expect(s).To(Equal(Size(7)), "%s: refused and yet taken", text)
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"0s": "0s", "90s": "1m30s", "120s": "2m", "60m": "1h", "720h": "720h", "1h0m5s": "1h0m5s", "10m": "10m", "1ms": "1ms", "100m": "1h40m",
	} {
		g := NewWithT(t)
		var d, again Duration
		g.Expect(d.UnmarshalText([]byte(text))).To(Succeed(), text)
		out, err := d.MarshalText()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(out)).To(Equal(want), text)
		g.Expect(again.UnmarshalText(out)).To(Succeed(), "%s", out)
		g.Expect(again).To(Equal(d))
	}
	for _, text := range []string{"", "5", "-1s", "1d", "soon"} {
		d := Duration{time.Hour}
		NewWithT(t).Expect(d.UnmarshalText([]byte(text))).NotTo(Succeed(), text)
		NewWithT(t).Expect(d.Duration).To(Equal(time.Hour))
	}
}
