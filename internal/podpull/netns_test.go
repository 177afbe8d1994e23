package podpull

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox"
)

// needRoot skips a test that changes the machine's namespaces or cgroups.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// pod is a network namespace whose loopback is up, as a pod has one.
type pod struct {
	t    *testing.T
	path string
}

func newPod(t *testing.T) pod {
	t.Helper()
	needRoot(t)
	p := pod{t, filepath.Join(t.TempDir(), "ns")}
	if err := os.WriteFile(p.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), p.path, "", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(p.path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p.ip("link", "set", "lo", "up")
	return p
}

// ip runs ip(8) in the pod.
func (p pod) ip(args ...string) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "nsenter", append([]string{"--net=" + p.path, "ip"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// within runs fn on a thread in the pod's network: what it listens on, only the pod
// reaches.
func (p pod) within(fn func()) {
	p.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and ends with the goroutine
		ns, err := os.Open(p.path)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

// resolver is a name server that knows one name, and what it was asked.
type resolver struct {
	name string
	mu   sync.Mutex
	seen []string
}

// serve answers on address, "ip:53" in the pod. The name is 127.0.0.1.
func (r *resolver) serve(p pod, address string) {
	p.t.Helper()
	var conn net.PacketConn
	var err error
	p.within(func() { conn, err = new(net.ListenConfig).ListenPacket(p.t.Context(), "udp", address) })
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for {
			query := make([]byte, 512)
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(r.answer(query[:n]), from)
		}
	}()
}

// answer is RFC 1035, section 4: a header of 12 bytes, the question's name as labels,
// its type and class.
func (r *resolver) answer(query []byte) []byte {
	var labels []string
	at := 12
	for query[at] != 0 {
		labels = append(labels, string(query[at+1:at+1+int(query[at])]))
		at += 1 + int(query[at])
	}
	end := at + 5
	name := strings.Join(labels, ".")
	r.mu.Lock()
	r.seen = append(r.seen, name)
	r.mu.Unlock()
	reply := append([]byte{query[0], query[1], 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
	switch typeA := binary.BigEndian.Uint16(query[at+1:]) == 1; {
	case name != r.name:
		reply[3] = 3 // no such name
	case typeA:
		reply[7] = 1
		reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
	}
	return reply
}

func (r *resolver) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.seen...)
}

// hostResolvers are the host's own name servers.
func hostResolvers(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" && !net.ParseIP(f[1]).IsLoopback() {
			list = append(list, f[1])
		}
	}
	return list
}

// testGroup makes a pod's cgroup. procs are the processes in the groups in it, and
// groups those groups, in all hierarchies.
func testGroup(t *testing.T) (group string, groups, procs func() []string) {
	t.Helper()
	needRoot(t)
	group = "/husk-test-" + strconv.Itoa(os.Getpid()) + "-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	if err := sandbox.MakeCgroup(group); err != nil {
		if strings.Contains(err.Error(), "read-only") {
			t.Skip("needs a writable cgroup file system")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroup(t, group) })
	groups = func() []string { return groupDirs(t, group+"/husk-*") }
	procs = func() []string {
		seen := map[string]bool{}
		for _, dir := range groups() {
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				continue // gone meanwhile
			}
			for _, pid := range strings.Fields(string(data)) {
				seen[pid] = true
			}
		}
		var list []string
		for pid := range seen {
			list = append(list, pid)
		}
		return list
	}
	return group, groups, procs
}

func groupDirs(t *testing.T, pattern string) []string {
	t.Helper()
	var found []string
	for _, root := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		dirs, err := filepath.Glob(root + pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, dirs...)
	}
	return found
}

func removeGroup(t *testing.T, group string) {
	t.Helper()
	for _, dir := range append(groupDirs(t, group+"/husk-*"), groupDirs(t, group)...) {
		if err := os.Remove(dir); err != nil {
			t.Errorf("left behind: %v", err)
		}
	}
}

// fill sets every field of what v points to. A field that cannot travel as JSON
// fails the test.
func fill(t *testing.T, v any) {
	t.Helper()
	fillValue(t, reflect.ValueOf(v).Elem(), "")
}

func fillValue(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name := path + "." + v.Type().Field(i).Name
			if !v.Field(i).CanSet() {
				t.Fatalf("%s is not exported: the child would not get it", name)
			}
			fillValue(t, v.Field(i), name)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fillValue(t, v.Index(0), path)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillValue(t, v.Elem(), path)
	case reflect.String:
		v.SetString("sha256:" + strings.Repeat("a", 64)) // a digest may be asked for
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8:
		v.SetUint(7)
	default:
		t.Fatalf("%s is a %s: the child would not get it", path, v.Type())
	}
}
