package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "husk.toml")
	NewWithT(t).Expect(os.WriteFile(path, []byte(text), 0o600)).To(Succeed())
	return Load(path)
}

func TestEveryFieldHasAUsableZero(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := load(t, "")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Listen).To(Equal(DefaultListen))
	g.Expect(c.CrioConfig).To(Equal("/etc/crio/crio.conf"))
	g.Expect(c.MaxPulls).To(Equal(16))
	g.Expect(c.PullTimeout.Duration).To(Equal(2 * time.Minute))
	g.Expect(c.PinDigest("husk")).To(BeTrue())
}

func TestLoad(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := load(t, `
listen = "unix:///run/a.sock"
pull_timeout = "30s"
[handlers.kata]
pin_digest = false
`)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Listen).To(Equal("/run/a.sock"))
	g.Expect(c.PullTimeout.Duration).To(Equal(30 * time.Second))
	g.Expect(c.PinDigest("kata")).To(BeFalse())
	g.Expect(c.PinDigest("husk")).To(BeTrue())
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`lisen = "/x"`:           "unknown key lisen",
		`log_level = "loud"`:     "log_level",
		`log_format = "xml"`:     "log_format",
		`max_pulls = -1`:         "max_pulls",
		`pull_timeout = "-1s"`:   "not positive",
		`[handlers.x]` + "\ny=1": "unknown key handlers.x.y",
	} {
		_, err := load(t, text)
		NewWithT(t).Expect(err).To(MatchError(ContainSubstring(want)), text)
	}
	_, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	NewWithT(t).Expect(err).To(MatchError(os.ErrNotExist))
}
