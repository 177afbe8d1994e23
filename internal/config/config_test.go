package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// write makes a husk.toml with drop-ins, which are given in pairs of name and text.
func write(t *testing.T, text string, dropIns ...string) string {
	t.Helper()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "husk.toml")
	g.Expect(os.WriteFile(path, []byte(text), 0o600)).To(Succeed())
	for i := 0; i < len(dropIns); i += 2 {
		g.Expect(os.MkdirAll(path+".d", 0o700)).To(Succeed())
		g.Expect(os.WriteFile(filepath.Join(path+".d", dropIns[i]), []byte(dropIns[i+1]), 0o600)).To(Succeed())
	}
	return path
}

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	return Load(write(t, text))
}

func TestEveryFieldHasAUsableZero(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := load(t, "")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Listen).To(Equal(DefaultListen))
	g.Expect(c.HandoverSocket).To(Equal(DefaultHandoverSocket))
	g.Expect(c.CrioConfig).To(Equal("/etc/crio/crio.conf"))
	g.Expect(c.MaxPulls).To(Equal(16))
	g.Expect(c.PullTimeout.Duration).To(Equal(2 * time.Minute))
	g.Expect(c.LayerPullTimeout.Duration).To(Equal(30 * time.Minute))
	g.Expect(c.MetricsListen).To(BeEmpty())
	g.Expect(c.RecordTTL).To(BeZero())
	g.Expect(c.PinDigest("husk")).To(BeTrue())

	// Saying the zero is saying nothing, so that a drop-in can take a value back.
	zero, err := load(t, "listen = \"\"\nhandover_socket = \"\"\nmax_pulls = 0\npull_timeout = \"0s\"\nlayer_pull_timeout = \"0s\"\nrecord_ttl = \"0s\"\n")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(zero).To(Equal(c))
}

func TestLoad(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := load(t, `
listen = "unix:///run/a.sock"
pull_timeout = "30s"
layer_pull_timeout = "3h"
record_ttl = "720h"
metrics_listen = "127.0.0.1:9091"
[handlers.kata]
pin_digest = false
pull_in_sandbox = true
max_image_size = "2GiB"
max_layers = 64
[handlers.small]
max_image_size = 1000
`)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Listen).To(Equal("/run/a.sock"))
	g.Expect(c.PullTimeout.Duration).To(Equal(30 * time.Second))
	g.Expect(c.LayerPullTimeout.Duration).To(Equal(3 * time.Hour))
	g.Expect(c.RecordTTL.Duration).To(Equal(720 * time.Hour))
	g.Expect(c.MetricsListen).To(Equal("127.0.0.1:9091"))
	g.Expect(c.PinDigest("kata")).To(BeFalse())
	g.Expect(c.PinDigest("husk")).To(BeTrue())
	g.Expect(c.Handlers["kata"].PullInSandbox).To(BeTrue())
	g.Expect(c.Handlers["kata"].MaxImageSize).To(Equal(Size(2 << 30)))
	g.Expect(c.Handlers["kata"].MaxLayers).To(Equal(64))
	g.Expect(c.Handlers["small"].MaxImageSize).To(Equal(Size(1000)))
}

func TestNamedUsersAndEagerPull(t *testing.T) {
	t.Parallel()
	husk := crioconf.Handler{Path: "/opt/containerd-shim-husk-v2", Type: "vm", PullImage: true}
	other := crioconf.Handler{Path: "/opt/containerd-shim-other-v2", Type: "vm", PullImage: true}
	for _, c := range []struct {
		text        string
		husk, other string
		eager       bool
	}{
		{"", NamedUsersSandbox, NamedUsersRefuse, true},
		{"named_users = ''", NamedUsersSandbox, NamedUsersRefuse, true},
		{"named_users = 'refuse'", NamedUsersRefuse, NamedUsersRefuse, true},
		{"named_users = 'refuse-at-create'", NamedUsersRefuseAtCreate, NamedUsersRefuseAtCreate, true},
		{"named_users = 'sandbox'", NamedUsersSandbox, NamedUsersSandbox, true},
		{"eager_pull = true", NamedUsersSandbox, NamedUsersRefuse, true},
		{"eager_pull = false", NamedUsersSandbox, NamedUsersRefuse, false},
	} {
		g := NewWithT(t)
		conf, err := load(t, "[handlers.x]\n"+c.text)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect([]string{conf.NamedUsers("x", husk), conf.NamedUsers("x", other)}).To(Equal([]string{c.husk, c.other}), c.text)
		g.Expect(conf.EagerPull("x")).To(Equal(c.eager), c.text)
		// Of another handler nothing was said.
		g.Expect([]string{conf.NamedUsers("y", husk), conf.NamedUsers("y", other)}).To(Equal([]string{NamedUsersSandbox, NamedUsersRefuse}))
		g.Expect(conf.EagerPull("y")).To(BeTrue())
	}
}

func TestDropIns(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := write(t, "listen = \"/a\"\nmax_pulls = 2\n[handlers.kata]\npin_digest = false\nmax_layers = 5\n[handlers.old]\nmax_layers = 1\n",
		"20-b.toml", "listen = \"/c\"\n[handlers.kata]\nmax_layers = 7\n",
		"10-a.toml", "listen = \"/b\"\nlog_level = \"debug\"\n[handlers.new]\npull_in_sandbox = true\n",
		"30-c.toml.bak", "listen = \"/not-read\"", ".hidden.toml", "listen = \"/not-read\"", "README", "not TOML",
	)
	l := Read(path)
	g.Expect(l.Err()).NotTo(HaveOccurred())
	a, b := path+".d/10-a.toml", path+".d/20-b.toml"
	g.Expect(l.Files).To(Equal([]string{path, a, b}))
	g.Expect(l.Config.Listen).To(Equal("/c"))
	g.Expect(l.Config.MaxPulls).To(Equal(2))
	g.Expect(l.Config.LogLevel).To(Equal("debug"))
	no := false
	g.Expect(l.Config.Handlers).To(Equal(map[string]Handler{
		"kata": {PinDigest: &no, MaxLayers: 7}, "old": {MaxLayers: 1}, "new": {PullInSandbox: true},
	}), "a handler is merged key by key")
	g.Expect(l.Origins).To(HaveKeyWithValue("listen", b))
	g.Expect(l.Origins).To(HaveKeyWithValue("log_level", a))
	g.Expect(l.Origins).To(HaveKeyWithValue("handlers.kata.pin_digest", path))
	g.Expect(l.Origins).To(HaveKeyWithValue("handlers.kata.max_layers", b))
	g.Expect(l.Origins).NotTo(HaveKey("backend"))
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct{ key, says string }{
		`lisen = "/x"`:                          {"lisen", "unknown key"},
		`Listen = "/x"`:                         {"Listen", "unknown key"},
		`log_level = "loud"`:                    {"log_level", "no level"},
		`log_format = "xml"`:                    {"log_format", "no format"},
		`max_pulls = -1`:                        {"max_pulls", "negative"},
		`max_pulls = "many"`:                    {"max_pulls", "incompatible types"},
		"[handlers.x]\npresence = \"all\"":      {"handlers.x.presence", "neither"},
		"[handlers.x]\nnamed_users = \"allow\"": {"handlers.x.named_users", "none of them"},
		"[handlers.x]\neager_pull = \"no\"":     {"handlers.x.eager_pull", "incompatible types"},
		`pull_timeout = "-1s"`:                  {"pull_timeout", "negative"},
		`pull_timeout = "1 day"`:                {"pull_timeout", "no duration"},
		`record_ttl = "soon"`:                   {"record_ttl", "no duration"},
		`listen = "crio.sock"`:                  {"listen", "not absolute"},
		`backend = "tcp://1.2.3.4:5"`:           {"backend", "not absolute"},
		`crio_config = "crio.conf"`:             {"crio_config", "not absolute"},
		`metrics_listen = "0.0.0.0:1"`:          {"metrics_listen", "loopback"},
		`metrics_listen = ":9091"`:              {"metrics_listen", "loopback"},
		`metrics_listen = "localhost:1"`:        {"metrics_listen", "loopback"},
		`metrics_listen = "[::]:9091"`:          {"metrics_listen", "loopback"},
		`metrics_listen = "127.0.0.1:0"`:        {"metrics_listen", "loopback IP:port"},
		`metrics_listen = "127.0.0.1"`:          {"metrics_listen", "loopback IP:port"},
		`metrics_listen = "/run/m.sock"`:        {"metrics_listen", "unix:///path"},
		`metrics_listen = "unix://m"`:           {"metrics_listen", "no absolute path"},
		`metrics_listen = "unix:///run/"`:       {"metrics_listen", "no absolute path"},
		"[handlers.x]\ny=1":                     {"handlers.x.y", "unknown key"},
		"[handlers.x.pin_digest]\ny=1":          {"handlers.x.pin_digest", "incompatible types"},
		"[handlers.x]\nPin_Digest=false":        {"handlers.x.Pin_Digest", "unknown key"},
		"[handlers.x]\nmax_layers=-1":           {"handlers.x.max_layers", "negative"},
		"[handlers.x]\nmax_image_size='2 GiB'":  {"handlers.x.max_image_size", "no size"},
		"[storage]\nroot='/x'":                  {"storage", "unknown key"},
		"listen = ":                             {"listen", "line 1"},
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			base := write(t, "")
			// The same text is refused in a drop-in, and said to be there.
			for file, path := range map[string]string{"husk.toml": write(t, text), "husk.toml.d/50-x.toml": write(t, "", "50-x.toml", text)} {
				_, err := Load(path)
				g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
				var p Problem
				g.Expect(errors.As(err, &p)).To(BeTrue())
				g.Expect(p.File).To(HaveSuffix(file))
				g.Expect(p.Key).To(Equal(want.key))
				g.Expect(p.Error()).To(And(HavePrefix(p.File+": "), ContainSubstring(want.says)))
				g.Expect(p.Fatal).To(BeTrue())
			}
			_, err := Load(base)
			g.Expect(err).NotTo(HaveOccurred(), "nothing else is wrong")
		})
	}
}

func TestReadFindsEveryProblem(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	l := Read(write(t, "lisen = 1\nlog_level = \"loud\"\n[a]\nb = 1\nc = 2\n", "1.toml", "not toml", "2.toml", "max_pulls = -1"))
	var keys []string
	for _, p := range l.Problems {
		keys = append(keys, filepath.Base(p.File)+" "+p.Key)
	}
	g.Expect(keys).To(Equal([]string{"husk.toml lisen", "husk.toml a", "1.toml ", "husk.toml log_level", "2.toml max_pulls"}))
	g.Expect(strings.Count(l.Err().Error(), "\n")).To(Equal(4))
}

func TestFilesThatAreNone(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	g.Expect(err).To(MatchError(os.ErrNotExist))
	g.Expect(strings.Count(err.Error(), "none.toml")).To(Equal(1), "said once: %v", err)

	fifo := filepath.Join(t.TempDir(), "husk.toml")
	g.Expect(syscall.Mkfifo(fifo, 0o600)).To(Succeed())
	_, err = Load(fifo) // which would wait for ever if it were opened
	g.Expect(err).To(MatchError(ContainSubstring("not a regular file")))

	_, err = load(t, strings.Repeat("#", 1<<20+1))
	g.Expect(err).To(MatchError(ContainSubstring("at most")))

	path := write(t, "")
	g.Expect(os.Mkdir(path+".d", 0o700)).To(Succeed())
	for i := range maxDropIns + 1 {
		g.Expect(os.WriteFile(fmt.Sprintf("%s.d/%d.toml", path, i), nil, 0o600)).To(Succeed())
	}
	_, err = Load(path)
	g.Expect(err).To(MatchError(ContainSubstring("more than 64 files")))
	g.Expect(os.RemoveAll(path + ".d")).To(Succeed())
	g.Expect(os.WriteFile(path+".d", nil, 0o600)).To(Succeed())
	_, err = Load(path)
	g.Expect(err).To(HaveOccurred(), "a drop-in directory that is none")
}
