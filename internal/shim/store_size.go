package shim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/shim/pod"
)

const (
	percentSign = "%"
	wholePart   = 100
	// maxLimitFile bounds what is read of a file with one number.
	maxLimitFile = 64
	// maxMountLine bounds a line of mountinfo: an overlay's has the paths of all its layers,
	// and whoever mounts one on the host must not keep pods from their stores.
	maxMountLine = 4 << 20
)

// size is a size as the configuration has it: of a whole, or in bytes.
type size struct{ bytes, percent int64 }

// parseSize reads "25%" and, as tmpfs(5) has it, "512m".
func parseSize(text string) (size, error) {
	wrong := func() (size, error) {
		return size{}, fmt.Errorf("%q is not a size: write 512m or 2g (of 1024), or 25%%", text)
	}
	if text == "" || text[0] < '1' || text[0] > '9' { // nor is 0, which tmpfs takes for no limit
		return wrong()
	}
	if number, ok := strings.CutSuffix(text, percentSign); ok {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n > wholePart {
			return wrong()
		}
		return size{percent: n}, nil
	}
	unit := int64(1)
	number := text
	if i := strings.IndexByte("kmg", text[len(text)-1]|0x20); i >= 0 {
		unit, number = int64(1)<<(10*(i+1)), text[:len(text)-1]
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64/unit {
		return wrong()
	}
	return size{bytes: n * unit}, nil
}

// of returns the size in bytes where the whole is total, and never more than that.
func (z size) of(total int64) int64 {
	if z.percent > 0 {
		// By whole hundredths first: the product of a large disk would overflow.
		return total/wholePart*z.percent + total%wholePart*z.percent/wholePart
	}
	return min(z.bytes, total)
}

// memorySize returns how large a tmpfs may be for a pod in the given cgroup.
func memorySize(text, group string) (int64, error) {
	z, err := parseSize(text)
	if err != nil {
		return 0, err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	total := int64(info.Totalram) * int64(info.Unit)
	if group != "" {
		h, err := memoryHierarchy("/proc/self/mountinfo")
		if err != nil {
			return 0, err
		}
		if total, err = h.limit(group, total); err != nil {
			return 0, err
		}
	}
	// Less than a page is nothing, which tmpfs takes for no limit.
	return max(z.of(total), int64(os.Getpagesize())), nil
}

// diskSize returns how much a store in dir may hold.
func diskSize(text string, dir *os.File) (int64, error) {
	z, err := parseSize(text)
	if err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("read the size of the disk: %w", err)
	}
	return max(z.of(int64(st.Blocks)*st.Bsize), 1), nil
}

// hierarchy is where memory limits are: below root, in each group's file.
type hierarchy struct{ root, file string }

// The files of cgroup v1 and v2.
const (
	limitFileV1 = "memory.limit_in_bytes"
	limitFileV2 = "memory.max"
	noLimit     = "max"
)

// memoryHierarchy finds the memory controller: in a v1 hierarchy, or else in that of v2.
// Without one no group has a limit, and the zero hierarchy says so.
func memoryHierarchy(mountinfo string) (hierarchy, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return hierarchy{}, fmt.Errorf("find the memory controller: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	h, err := parseHierarchy(f)
	if err != nil {
		return hierarchy{}, fmt.Errorf("find the memory controller: %w", err)
	}
	return h, nil
}

// parseHierarchy reads the form of proc_pid_mountinfo(5): the mount point is the fifth
// field; behind the field "-" are the type, the source and the super block's options.
func parseHierarchy(mountinfo io.Reader) (hierarchy, error) {
	const mountPoint, minBehind = 4, 3
	var unified hierarchy
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, maxMountLine)
	for lines.Scan() {
		front, behind, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(front), strings.Fields(behind)
		if !ok || len(fields) <= mountPoint || len(tail) < minBehind {
			continue
		}
		switch tail[0] {
		case "cgroup":
			for option := range strings.SplitSeq(tail[2], ",") {
				if option == "memory" {
					return hierarchy{fields[mountPoint], limitFileV1}, nil
				}
			}
		case "cgroup2":
			if unified.root == "" { // later ones are parts of it, shown elsewhere
				unified = hierarchy{fields[mountPoint], limitFileV2}
			}
		}
	}
	return unified, lines.Err()
}

// limit returns the smallest limit of a group, "/a/b", and of those around it, none of
// which it can pass; total where there is none below it.
func (h hierarchy) limit(group string, total int64) (int64, error) {
	if h.root == "" {
		return total, nil
	}
	for g := path.Join("/", group); ; g = path.Dir(g) {
		n, err := readLimit(filepath.Join(h.root, g, h.file))
		if err != nil {
			return 0, fmt.Errorf("read the memory limit of the pod: %w", err)
		}
		total = min(total, n) // v1 writes no limit as a number that is larger than any memory
		if g == "/" {
			return total, nil
		}
	}
}

// readLimit returns the largest number there is where there is no limit, and none in a
// group that is not there.
func readLimit(name string) (int64, error) {
	data, err := pod.ReadFile(name, maxLimitFile)
	if errors.Is(err, fs.ErrNotExist) {
		return math.MaxInt64, nil
	}
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(data))
	if text == noLimit {
		return math.MaxInt64, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number of bytes", name, text)
	}
	return int64(min(n, math.MaxInt64)), nil
}
