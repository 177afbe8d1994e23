package node

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/crypto/bcrypt"
)

func planned(t *testing.T) *Node {
	t.Helper()
	n := &Node{Dir: t.TempDir(), Name: "n1", LogLevel: "info", Network: numbered(7)}
	n.Network.Name = "hskt7-ab"
	n.plan(defaultSocket)
	n.Registry = Registry{
		Address: "10.213.7.1:5000", Config: n.path("conf", "registry.yml"), Data: n.path("registry"), AccessLog: n.path("log", "registry.out"),
	}
	NewWithT(t).Expect(n.makeFolders()).To(Succeed())
	return n
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return string(b)
}

func TestCRIOConfig(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		shim       Shim
		want, lack []string
	}{
		"no shim": {
			want: []string{"[crio.runtime.runtimes.runc]", "[crio.runtime.runtimes.runc2]", `log_level = "info"`, `default_runtime = "runc"`},
			lack: []string{"runtimes.husk", "runtime_config_path", "runtime_pull_image"},
		},
		"shim": {
			shim: Shim{Path: "/bin/containerd-shim-husk-v2"},
			want: []string{"[crio.runtime.runtimes.husk]\nruntime_type = \"vm\"\nruntime_path = \"/bin/containerd-shim-husk-v2\"", "runtime_pull_image = true"},
			lack: []string{"runtime_config_path"},
		},
		"shim with its configuration": {
			shim: Shim{Path: "/bin/containerd-shim-husk-v2", Config: "/etc/shim.toml"},
			want: []string{"runtime_pull_image = true\nruntime_config_path = \"/etc/shim.toml\"\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			n := planned(t)
			n.Shim = c.shim
			g.Expect(n.writeConfig(nil)).To(Succeed())
			got := text(t, n.CRIO.Config)
			for _, w := range c.want {
				g.Expect(got).To(ContainSubstring(w))
			}
			for _, l := range c.lack {
				g.Expect(got).NotTo(ContainSubstring(l))
			}
			g.Expect(got).NotTo(ContainSubstring("<no value>"))
			for _, line := range strings.Split(got, "\n") { // all that CRI-O writes is below the node's folder
				if strings.HasPrefix(line, "root") || strings.HasPrefix(line, "runroot") || strings.Contains(line, "_dir ") {
					g.Expect(line).To(ContainSubstring(n.Dir))
				}
			}
		})
	}
}

func TestRegistriesConfig(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	n := planned(t)
	n.AuthRegistry = &Registry{
		Address: "10.213.7.1:5001", Config: n.path("conf", "auth-registry.yml"), Data: n.path("auth-registry"), Htpasswd: n.path("conf", "htpasswd"),
	}
	dropIn := filepath.Join(t.TempDir(), "10-x.conf")
	g.Expect(os.WriteFile(dropIn, []byte("[crio]\n"), 0o600)).To(Succeed())
	g.Expect(n.writeConfig([]string{dropIn})).To(Succeed())

	conf := text(t, n.CRIO.RegistriesConf)
	g.Expect(conf).To(ContainSubstring("location = \"10.213.7.1:5000\"\ninsecure = true"))
	g.Expect(conf).To(ContainSubstring("location = \"10.213.7.1:5001\"\ninsecure = true"))
	g.Expect(text(t, n.Registry.Config)).NotTo(ContainSubstring("htpasswd"))
	g.Expect(text(t, n.AuthRegistry.Config)).To(ContainSubstring("path: " + n.AuthRegistry.Htpasswd))
	g.Expect(text(t, filepath.Join(n.CRIO.ConfigDir, "10-x.conf"))).To(Equal("[crio]\n"))
	g.Expect(text(t, n.path("conf", "cni", "10-hskt7.conflist"))).To(MatchJSON(`{"cniVersion": "1.0.0", "name": "hskt7-ab", "plugins": [
		{"type": "bridge", "bridge": "hskt7", "isGateway": false, "ipMasq": false, "ipam": {"type": "host-local",
		 "dataDir": "` + n.path("crio", "ipam") + `", "routes": [{"dst": "0.0.0.0/0"}],
		 "ranges": [[{"subnet": "10.213.7.0/24", "gateway": "10.213.7.1"}]]}}]}`))
}

func TestHtpasswd(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "htpasswd")
	for _, bad := range []string{"alice", "alice:", ":secret", ""} {
		g.Expect(writeHtpasswd(path, bad)).NotTo(Succeed(), bad)
		g.Expect(path).NotTo(BeAnExistingFile())
	}
	g.Expect(writeHtpasswd(path, "alice:se:cret")).To(Succeed())
	user, hash, ok := strings.Cut(strings.TrimSpace(text(t, path)), ":")
	g.Expect(ok).To(BeTrue())
	g.Expect(user).To(Equal("alice"))
	g.Expect(bcrypt.CompareHashAndPassword([]byte(hash), []byte("se:cret"))).To(Succeed())
}

func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	full := t.TempDir()
	NewWithT(t).Expect(os.WriteFile(filepath.Join(full, "x"), nil, 0o600)).To(Succeed())
	for name, o := range map[string]Options{
		"a folder with files in it": {Dir: full},
		"a long path":               {Dir: "/tmp/" + strings.Repeat("x", maxDir)},
		"a bad name":                {Dir: "/tmp/husk-none", Name: "../x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := prepare(o)
			g.Expect(err).To(HaveOccurred())
			g.Expect("/tmp/husk-none").NotTo(BeADirectory())
		})
	}
}

func TestSaveAndLoad(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	n := planned(t)
	n.Daemons["crio"] = Daemon{Proc: Proc{PID: 12, Start: 34}, Argv: []string{"crio"}}
	g.Expect(n.save()).To(Succeed())
	got, unlock, err := Load(n.Dir)
	g.Expect(err).NotTo(HaveOccurred())
	unlock()
	g.Expect(got.Daemons).To(Equal(n.Daemons))
	g.Expect(got.CRIO).To(Equal(n.CRIO))

	_, _, err = Load(t.TempDir())
	g.Expect(err).To(MatchError(os.ErrNotExist))
}

func TestNumberedAndUsed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	n := numbered(254)
	g.Expect(n).To(Equal(Network{Bridge: "hskt254", IP: "10.213.254.1", Subnet: "10.213.254.0/24"}))
	_, wide, err := net.ParseCIDR("10.0.0.0/8")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(used([]net.Addr{wide}, netip.MustParsePrefix(n.Subnet))).To(BeTrue())
	g.Expect(used([]net.Addr{&net.IPNet{IP: net.IPv4(127, 0, 0, 1).To4(), Mask: net.CIDRMask(8, 32)}}, netip.MustParsePrefix(n.Subnet))).To(BeFalse())
}

func TestMountsBelow(t *testing.T) {
	t.Parallel()
	info := `22 1 8:1 / / rw - ext4 /dev/vda rw
30 22 0:5 / /tmp/n1 rw - tmpfs x rw
31 22 0:5 / /tmp/n1/a rw - tmpfs x rw
32 31 0:5 / /tmp/n1/a/with\040space rw - tmpfs x rw
33 22 0:5 / /tmp/n11/a rw - tmpfs x rw
`
	NewWithT(t).Expect(mountsBelow([]byte(info), "/tmp/n1")).To(Equal([]string{"/tmp/n1/a", "/tmp/n1/a/with space"}))
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s, err := parseStat([]byte("12 (a) b) S 7 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4321 0"))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s).To(Equal(stat{ppid: 7, start: 4321, state: 'S'}))
	_, err = parseStat([]byte("12 (x) S"))
	g.Expect(err).To(HaveOccurred())

	all := map[int]stat{1: {}, 5: {ppid: 1}, 6: {ppid: 5, start: 1}, 7: {ppid: 6, state: 'Z'}, 8: {ppid: 7, start: 2}, 9: {ppid: 1}}
	g.Expect(descendants(all, 5)).To(ConsistOf(Proc{PID: 6, Start: 1}, Proc{PID: 8, Start: 2}))
	g.Expect(ancestors(all, 8)).To(Equal(map[int]bool{8: true, 7: true, 6: true, 5: true, 1: true}))

	self, err := process(os.Getpid())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(self.Alive()).To(BeTrue())
	g.Expect(Proc{PID: self.PID, Start: self.Start + 1}.Alive()).To(BeFalse())
}
