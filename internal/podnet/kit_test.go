package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	. "github.com/onsi/gomega"
)

// realPlugins is where Debian installs the CNI project's plugins.
const realPlugins = "/usr/lib/cni"

// answersVersion is how a plugin of ours begins: what libcni asks first.
const answersVersion = `#!/bin/sh
case $CNI_COMMAND in VERSION)
	echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit;;
esac
`

// node is a CNI configuration: a bridge of its own with real plugins, and then ours.
type node struct {
	Config
	t      *testing.T
	dir    string
	subnet netip.Prefix
}

// newNode returns a node whose network "pods" is a bridge, followed by the given plugins.
func newNode(t *testing.T, serial *atomic.Int32, plugins ...string) node {
	t.Helper()
	needNode(t)
	n := serial.Add(1)
	dir := t.TempDir()
	nd := node{
		Config: Config{
			ConfDir: filepath.Join(dir, "net.d"), CacheDir: filepath.Join(dir, "cache"),
			PluginDirs: []string{filepath.Join(dir, "bin"), realPlugins},
		},
		t: t, dir: dir, subnet: netip.MustParsePrefix(fmt.Sprintf("10.231.%d.0/24", n)),
	}
	NewWithT(t).Expect(os.MkdirAll(nd.ConfDir, 0o700)).To(Succeed())
	NewWithT(t).Expect(os.MkdirAll(nd.PluginDirs[0], 0o700)).To(Succeed())
	nd.configure("10-pods.conflist", "pods", fmt.Sprintf("tstbr%d", n), plugins...)
	return nd
}

// configure writes the configuration of a network.
func (n node) configure(file, name, bridge string, plugins ...string) {
	n.t.Helper()
	var more strings.Builder
	for _, p := range plugins {
		fmt.Fprintf(&more, `,{"type":%q}`, p)
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"bridge","bridge":%q,"isGateway":true,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}}%s]}`,
		name, bridge, filepath.Join(n.dir, "leases"), n.subnet, more.String())
	NewWithT(n.t).Expect(os.WriteFile(filepath.Join(n.ConfDir, file), []byte(conf), 0o600)).To(Succeed())
}

// plugin writes a plugin of ours, to be found before the real ones.
func (n node) plugin(name, body string) {
	n.t.Helper()
	writePlugin(n.t, n.PluginDirs[0], name, body)
}

func writePlugin(t *testing.T, dir, name, body string) {
	t.Helper()
	// By a rename: the file may be running.
	temporary := filepath.Join(t.TempDir(), name)
	NewWithT(t).Expect(os.WriteFile(temporary, []byte(answersVersion+body), 0o700)).To(Succeed())
	NewWithT(t).Expect(os.Rename(temporary, filepath.Join(dir, name))).To(Succeed())
}

// pod returns a pod with a network namespace, not attached yet.
func (n node) pod(name string) Attachment {
	n.t.Helper()
	a := Attachment{PodID: strings.ReplaceAll(filepath.Base(n.dir)+"x"+n.subnet.Addr().String(), ".", "") + name, Name: name, Netns: filepath.Join(n.dir, "ns-"+name)}
	a.PodID += strings.Repeat("0", 64-len(a.PodID))
	NewWithT(n.t).Expect(NewNetns(a.Netns)).To(Succeed())
	n.t.Cleanup(func() { NewWithT(n.t).Expect(RemoveNetns(a.Netns)).To(Succeed()) })
	return a
}

// leases lists the addresses that host-local has given.
func (n node) leases(network string) []string {
	n.t.Helper()
	found, err := filepath.Glob(filepath.Join(n.dir, "leases", network, n.subnet.Addr().String()[:7]+"*"))
	NewWithT(n.t).Expect(err).NotTo(HaveOccurred())
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return found
}

// links lists the interfaces in a pod.
func links(t *testing.T, a Attachment) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+a.Netns, "ip", "-o", "link").CombinedOutput()
	NewWithT(t).Expect(err).NotTo(HaveOccurred(), "%s", out)
	var names []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.Fields(line)[1], "@")
		names = append(names, strings.TrimSuffix(name, ":"))
	}
	return names
}

// running lists the processes that left matches.
func running(left match) []string {
	var found []string
	all := parents()
	for pid := range all {
		if environ, err := readAtMost(procFile(pid, "environ"), maxEnviron); err == nil && pid != os.Getpid() && left(environ, descends(all, pid)) {
			command, _ := os.ReadFile(procFile(pid, "cmdline"))
			found = append(found, string(command))
		}
	}
	return found
}

func writeRaw(t *testing.T, path, text string) {
	t.Helper()
	NewWithT(t).Expect(os.WriteFile(path, []byte(text), 0o700)).To(Succeed())
}
