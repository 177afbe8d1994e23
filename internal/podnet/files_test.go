package podnet

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestWriteFiles(t *testing.T) {
	t.Parallel()
	resolv := filepath.Join(t.TempDir(), "resolv")
	NewWithT(t).Expect(os.WriteFile(resolv, []byte("nameserver 127.0.0.53\n"), 0o600)).To(Succeed())
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for name, c := range map[string]struct {
		cfg             FilesConfig
		hosts, hostname string
	}{
		"none named":     {FilesConfig{}, local, ""},
		"no address":     {FilesConfig{Hostname: "web"}, local + "127.0.0.1\tweb\n", "web\n"},
		"two families":   {FilesConfig{Hostname: "web", IPs: ips("10.0.0.1", "fd00::1")}, local + "10.0.0.1\tweb\nfd00::1\tweb\n", "web\n"},
		"a whole domain": {FilesConfig{Hostname: "Web-0.shop.example", IPs: ips("10.0.0.1")}, local + "10.0.0.1\tWeb-0.shop.example Web-0\n", "Web-0.shop.example\n"},
		"as plugins say": {FilesConfig{Hostname: "7", IPs: ips("::ffff:10.0.0.1", "fe80::1%eth0")}, local + "10.0.0.1\t7\nfe80::1\t7\n", "7\n"},
		"no name for it": {FilesConfig{IPs: ips("10.0.0.1")}, local, ""},
	} {
		g, dir := NewWithT(t), t.TempDir()
		c.cfg.ResolvConf = resolv
		for range 2 { // and again, over what is there
			files, err := WriteFiles(dir, c.cfg)
			g.Expect(err).NotTo(HaveOccurred())
			for path, want := range map[string]string{files.Hosts: c.hosts, files.Hostname: c.hostname, files.ResolvConf: "nameserver 127.0.0.53\n"} {
				g.Expect(os.ReadFile(path)).To(Equal([]byte(want)), name)
				info, err := os.Lstat(path)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(info.Mode()).To(Equal(os.FileMode(0o644)))
				g.Expect(filepath.Dir(path)).To(Equal(dir))
			}
			g.Expect(os.ReadDir(dir)).To(HaveLen(3), "and nothing else")
		}
	}
}

func ips(text ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range text {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestWriteFilesRefuses(t *testing.T) {
	t.Parallel()
	resolv := filepath.Join(t.TempDir(), "resolv")
	NewWithT(t).Expect(os.WriteFile(resolv, nil, 0o600)).To(Succeed())
	for name, cfg := range map[string]FilesConfig{
		"another line":      {Hostname: "web\n10.0.0.1 registry.example"},
		"another name":      {Hostname: "web registry.example"},
		"a tab":             {Hostname: "web\tregistry"},
		"a comment":         {Hostname: "web#"},
		"a path":            {Hostname: "../etc"},
		"an underscore":     {Hostname: "my_web"},
		"no letter":         {Hostname: "wéb"},
		"a dash first":      {Hostname: "-web"},
		"a dash last":       {Hostname: "web-"},
		"a dot first":       {Hostname: ".web"},
		"a dot last":        {Hostname: "web."},
		"two dots":          {Hostname: "web..a"},
		"a long label":      {Hostname: strings.Repeat("a", 64)},
		"a long name":       {Hostname: strings.Repeat("a.", 32) + "a"},
		"a last line break": {Hostname: "web\n"},
		"a NUL":             {Hostname: "web\x00"},
		"no address":        {Hostname: "web", IPs: []netip.Addr{{}}},
		"addresses galore":  {Hostname: "web", IPs: make([]netip.Addr, maxIPs+1)},
	} {
		g, dir := NewWithT(t), t.TempDir()
		cfg.ResolvConf = resolv
		_, err := WriteFiles(dir, cfg)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), name)
		g.Expect(os.ReadDir(dir)).To(BeEmpty(), name)
		g.Expect(err.Error()).NotTo(ContainSubstring("\n"), "a log has no line of it")
	}
}

// TestWriteFilesFollowsNothing: what stands under the names is replaced.
func TestWriteFilesFollowsNothing(t *testing.T) {
	t.Parallel()
	g, dir := NewWithT(t), t.TempDir()
	canary := filepath.Join(t.TempDir(), "canary")
	g.Expect(os.WriteFile(canary, []byte("unchanged"), 0o600)).To(Succeed())
	g.Expect(os.Symlink(canary, filepath.Join(dir, "hosts"))).To(Succeed())
	g.Expect(os.Link(canary, filepath.Join(dir, "hostname"))).To(Succeed())
	g.Expect(unix.Mkfifo(filepath.Join(dir, "resolv.conf"), 0o600)).To(Succeed())
	_, err := WriteFiles(dir, FilesConfig{Hostname: "web", ResolvConf: "/dev/null"})
	g.Expect(err).To(MatchError(ContainSubstring("no regular file")))
	_, err = WriteFiles(dir, FilesConfig{Hostname: "web"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(os.ReadFile(canary)).To(Equal([]byte("unchanged")))
	g.Expect(os.ReadFile(filepath.Join(dir, "hostname"))).To(Equal([]byte("web\n")))
	_, err = WriteFiles(filepath.Join(dir, "none"), FilesConfig{})
	g.Expect(err).To(MatchError(os.ErrNotExist))
}

func TestResolvConf(t *testing.T) {
	t.Parallel()
	const real = "nameserver 10.0.0.2\nsearch corp\n"
	for name, c := range map[string]struct{ host, resolved, want string }{
		"plain":                    {"nameserver 10.0.0.1\n", real, "nameserver 10.0.0.1\n"},
		"the stub":                 {"# stub\nnameserver 127.0.0.53\noptions edns0\n", real, real},
		"the stub of IPv6":         {"nameserver ::1\n", real, real},
		"the other stub":           {"nameserver 127.0.0.54\nnameserver 127.0.0.53\n", real, real},
		"one of two":               {"nameserver 127.0.0.1\nnameserver 10.0.0.1\n", real, "nameserver 127.0.0.1\nnameserver 10.0.0.1\n"},
		"a stub without systemd":   {"nameserver 127.0.0.1\n", "", "nameserver 127.0.0.1\n"},
		"no name server":           {"search corp\n", real, "search corp\n"},
		"one that is no address":   {"nameserver dns.corp\n", real, "nameserver dns.corp\n"},
		"a host without a file":    {"", "", ""},
		"only the stub's comments": {"#nameserver 127.0.0.53\n", real, "#nameserver 127.0.0.53\n"},
	} {
		g, dir := NewWithT(t), t.TempDir()
		host, resolved := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "resolved")
		for path, text := range map[string]string{host: c.host, resolved: c.resolved} {
			if text != "" {
				g.Expect(os.WriteFile(path, []byte(text), 0o600)).To(Succeed())
			}
		}
		got, err := FilesConfig{}.resolvConf(host, resolved)
		g.Expect(err).NotTo(HaveOccurred(), name)
		g.Expect(string(got)).To(Equal(c.want), name)
	}
	g, dir := NewWithT(t), t.TempDir()
	huge, fifo := filepath.Join(dir, "huge"), filepath.Join(dir, "fifo")
	g.Expect(os.WriteFile(huge, bytes.Repeat([]byte("#"), maxResolvConf+1), 0o600)).To(Succeed())
	g.Expect(unix.Mkfifo(fifo, 0o600)).To(Succeed())
	for path, want := range map[string]string{huge: "longer than", fifo: "no regular file", dir: "no regular file"} {
		_, err := FilesConfig{}.resolvConf(path, path)
		g.Expect(err).To(MatchError(ContainSubstring(want)))
		_, err = FilesConfig{ResolvConf: path}.resolvConf("", "")
		g.Expect(err).To(MatchError(ContainSubstring(want)))
	}
	_, err := FilesConfig{ResolvConf: filepath.Join(dir, "none")}.resolvConf("", "")
	g.Expect(err).To(MatchError(os.ErrNotExist), "a file that is named must be there")
}
