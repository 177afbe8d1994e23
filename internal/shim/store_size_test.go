package shim

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
)

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]size{
		"1": {bytes: 1}, "4096": {bytes: 4096}, "2k": {bytes: 2048}, "3M": {bytes: 3 << 20}, "5g": {bytes: 5 << 30},
		"1%": {percent: 1}, "100%": {percent: 100}, "9223372036854775807": {bytes: math.MaxInt64},
	} {
		NewWithT(t).Expect(parseSize(text)).To(Equal(want), text)
	}
	for _, text := range []string{
		"", "0", "0%", "01", "-1", "+1", " 1", "1 ", "1t", "m", "%", "101%", "1.5g", "5m,uid=0", "5mm", "1%%", "9223372036854775808", "9007199254740992k", "9000000000g", "1_0",
	} {
		_, err := parseSize(text)
		NewWithT(t).Expect(err).To(MatchError(ContainSubstring("is not a size")), text)
	}
}

func TestSizeOf(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(size{percent: 50}.of(1000)).To(Equal(int64(500)))
	g.Expect(size{percent: 33}.of(199)).To(Equal(int64(65)))
	g.Expect(size{percent: 100}.of(math.MaxInt64)).To(Equal(int64(math.MaxInt64)), "no overflow")
	g.Expect(size{bytes: 10}.of(1000)).To(Equal(int64(10)))
	g.Expect(size{bytes: 1000}.of(10)).To(Equal(int64(10)), "more than there is would be a promise")
}

// tree makes the files of a cgroup hierarchy.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	const total, none = int64(8 << 30), "9223372036854771712\n" // as v1 has it
	for name, tc := range map[string]struct {
		file  string
		files map[string]string
		group string
		want  int64
	}{
		"v1": {limitFileV1, map[string]string{
			"memory.limit_in_bytes": none, "kubepods/memory.limit_in_bytes": none, "kubepods/pod1/memory.limit_in_bytes": "134217728\n",
		}, "/kubepods/pod1", 128 << 20},
		"v1 without a limit": {limitFileV1, map[string]string{"memory.limit_in_bytes": none, "pod1/memory.limit_in_bytes": none}, "/pod1", total},
		"v1 around it": {limitFileV1, map[string]string{
			"kubepods/memory.limit_in_bytes": "1073741824\n", "kubepods/pod1/memory.limit_in_bytes": "4294967296\n",
		}, "/kubepods/pod1", 1 << 30},
		"v2": {limitFileV2, map[string]string{
			"kubepods.slice/memory.max": "max\n", "kubepods.slice/kubepods-pod1.slice/memory.max": "268435456\n",
		}, "/kubepods.slice/kubepods-pod1.slice", 256 << 20},
		"v2 without a limit": {limitFileV2, map[string]string{"pod1/memory.max": "max\n"}, "/pod1", total},
		"v2 around it": {limitFileV2, map[string]string{
			"kubepods/memory.max": "2147483648\n", "kubepods/pod1/memory.max": "max\n",
		}, "/kubepods/pod1", 2 << 30},
		"another pod's":             {limitFileV2, map[string]string{"pod1/memory.max": "max\n", "pod2/memory.max": "4096\n"}, "/pod1", total},
		"a limit beyond the memory": {limitFileV2, map[string]string{"pod1/memory.max": "99999999999999\n"}, "/pod1", total},
		"of zero":                   {limitFileV2, map[string]string{"pod1/memory.max": "0\n"}, "/pod1", 0},
		"no such group":             {limitFileV2, nil, "/a/b/c", total},
		"the root":                  {limitFileV1, map[string]string{"memory.limit_in_bytes": none}, "/", total},
		"not out of it":             {limitFileV2, map[string]string{"memory.max": "max\n"}, "/../../etc", total},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			NewWithT(t).Expect(hierarchy{tree(t, tc.files), tc.file}.limit(tc.group, total)).To(Equal(tc.want))
		})
	}
}

func TestDamagedMemoryLimit(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "many", "-1", "1 2", strings.Repeat("9", 1<<20)} {
		_, err := hierarchy{tree(t, map[string]string{"pod1/memory.max": content}), limitFileV2}.limit("/pod1", 1)
		NewWithT(t).Expect(err).To(MatchError(And(ContainSubstring("memory limit of the pod"), ContainSubstring("pod1/memory.max"))))
	}
}

func TestParseHierarchy(t *testing.T) {
	t.Parallel()
	const (
		other = "24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,memory\n"
		v1    = "37 33 0:33 / /sys/fs/cgroup/memory rw,relatime shared:9 master:2 - cgroup cgroup rw,memory\n"
		v1cpu = "34 33 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
		v2    = "40 33 0:36 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	)
	for name, tc := range map[string]struct {
		mountinfo string
		want      hierarchy
	}{
		"v2":        {other + v2, hierarchy{"/sys/fs/cgroup/unified", "memory.max"}},
		"v1":        {other + v1cpu + v1, hierarchy{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}},
		"both":      {v2 + v1cpu + v1, hierarchy{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}},
		"split":     {v1cpu + v2, hierarchy{"/sys/fs/cgroup/unified", "memory.max"}},
		"none":      {other, hierarchy{}},
		"elsewhere": {v2 + "50 33 0:36 /kubelet /srv/cgroup rw - cgroup2 cgroup2 rw\n", hierarchy{"/sys/fs/cgroup/unified", "memory.max"}},
		"a long line": {
			"41 33 0:40 / /srv rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", 100_000) + "\n" + v2,
			hierarchy{"/sys/fs/cgroup/unified", "memory.max"},
		},
		"half lines": {"24 1\n - \n1 2 3 4 5 6 - cgroup\n", hierarchy{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			NewWithT(t).Expect(parseHierarchy(strings.NewReader(tc.mountinfo))).To(Equal(tc.want))
		})
	}
	g := NewWithT(t)
	g.Expect(hierarchy{}.limit("/pod1", 5)).To(Equal(int64(5)), "without a controller there is no limit")
	_, err := memoryHierarchy("/no/such/mountinfo")
	g.Expect(err).To(MatchError(ContainSubstring("memory controller")))
	_, err = memoryHierarchy("/proc/self/mountinfo")
	g.Expect(err).NotTo(HaveOccurred())
}

func TestSizesOfThisMachine(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	whole, err := memorySize("100%", "")
	g.Expect(err).NotTo(HaveOccurred())
	half, err := memorySize("50%", "/no-such-pod")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(half).To(And(BeNumerically(">", 0), BeNumerically("<=", whole/2+1)))
	g.Expect(memorySize("1", "")).To(Equal(int64(os.Getpagesize())), "tmpfs takes 0 for no limit")

	dir, err := os.Open(t.TempDir())
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(dir.Close()).To(Succeed()) }()
	var st unix.Statfs_t
	g.Expect(unix.Statfs(dir.Name(), &st)).To(Succeed())
	g.Expect(diskSize("100%", dir)).To(Equal(int64(st.Blocks) * st.Bsize))
	g.Expect(diskSize("1m", dir)).To(Equal(int64(1 << 20)))
}
