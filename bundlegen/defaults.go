package bundlegen

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/validate/capabilities"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The defaults of stock CRI-O 1.34 for an unprivileged container, as kubelet asks for one
// with a default security context (server/container_create*.go, its generator's start).

// pauseID is the user and group of Kubernetes' pause image.
const pauseID = 65535

// stopSignalAnnotation is the only annotation that CRI-O's conversion takes from an image
// config (image-spec, conversion.md, has more): none of its labels, which whoever built the
// image chose, may speak for the node.
const stopSignalAnnotation = "org.opencontainers.image.stopSignal"

// cgroupDir is where the kernel's control groups are mounted.
const cgroupDir = "/sys/fs/cgroup"

// The counters that tell a container what its neighbours do (GHSA-6fw5-f8r9-fgfm), which
// the processors of few virtual machines have.
const (
	cpuDir       = "/sys/devices/system/cpu"
	thermalName  = "thermal_throttle"
	maxCPUNumber = 1 << 13 // the kernel's CONFIG_NR_CPUS at most
)

// nodeEnv are the variables that the image's and the request's replace.
func nodeEnv(hostname string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"}
	if hostname != "" {
		env = append(env, "HOSTNAME="+hostname)
	}
	return env
}

func standardMounts() []rspec.Mount {
	return []rspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: cgroupDir, Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}

// allMounts are the standard mounts that added leaves, and added.
func allMounts(added []rspec.Mount) ([]rspec.Mount, error) {
	taken := map[string]bool{}
	for _, m := range added {
		if !path.IsAbs(m.Destination) {
			return nil, errdefs.Newf(errdefs.InvalidArgument, "check mounts", "%q is not an absolute path", m.Destination)
		}
		taken[path.Clean(m.Destination)] = true
	}
	mounts := slices.DeleteFunc(standardMounts(), func(m rspec.Mount) bool {
		return taken[m.Destination] ||
			(taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/")) ||
			(taken["/sys"] && strings.HasPrefix(m.Destination, "/sys/"))
	})
	for _, m := range added {
		m.Options = slices.Clone(m.Options)
		m.UIDMappings, m.GIDMappings = slices.Clone(m.UIDMappings), slices.Clone(m.GIDMappings)
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func namespaces(asked []rspec.LinuxNamespace) []rspec.LinuxNamespace {
	if asked != nil {
		return slices.Clone(asked)
	}
	list := []rspec.LinuxNamespace{
		{Type: rspec.PIDNamespace}, {Type: rspec.NetworkNamespace}, {Type: rspec.IPCNamespace},
		{Type: rspec.UTSNamespace}, {Type: rspec.MountNamespace},
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroupDir, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		list = append(list, rspec.LinuxNamespace{Type: rspec.CgroupNamespace})
	}
	return list
}

// maskedPaths are CRI-O's, sorted as there.
func maskedPaths() []string {
	paths := []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
	}
	paths = append(paths, thermalPaths(cpuDir)...)
	slices.Sort(paths)
	return paths
}

// thermalPaths names the directory of every processor that there may be, where the first
// has one. Runtimes pass over the missing, and a look at each would take longer than all
// else that Spec does.
func thermalPaths(dir string) (paths []string) {
	if _, err := os.Lstat(filepath.Join(dir, "cpu0", thermalName)); err != nil {
		return nil
	}
	possible, err := os.ReadFile(filepath.Join(dir, "possible"))
	if err != nil {
		possible = fmt.Appendf(nil, "0-%d", runtime.NumCPU()-1)
	}
	for part := range strings.SplitSeq(strings.TrimSpace(string(possible)), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, errFirst := strconv.Atoi(from)
		last, errLast := strconv.Atoi(to)
		if errFirst != nil || errLast != nil {
			continue
		}
		for cpu := first; cpu <= min(last, maxCPUNumber); cpu++ {
			paths = append(paths, filepath.Join(dir, "cpu"+strconv.Itoa(cpu), thermalName))
		}
	}
	return paths
}

// readonlyPaths are kubelet's for a container whose procMount is the default; CRI-O adds none.
func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func defaultCapabilities() []string {
	return []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "KILL"}
}

// capabilitySets has no inheritable and no ambient ones, as CRI-O (CVE-2022-27652).
func capabilitySets(names []string) (*rspec.LinuxCapabilities, error) {
	list := make([]string, 0, len(names))
	for _, name := range names {
		name = strings.ToUpper(name)
		if !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if err := capabilities.CapValid(name, false); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "check capabilities", err)
		}
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return &rspec.LinuxCapabilities{Bounding: list, Effective: slices.Clone(list), Permitted: slices.Clone(list)}, nil
}
