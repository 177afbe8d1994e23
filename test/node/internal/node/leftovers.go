package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Folders outside the node's own in which CRI-O's libraries leave files.
const (
	cniResults      = "/var/lib/cni/results" // libcni's cache: NETWORK-CONTAINER-INTERFACE
	containerdState = "/run/containerd/s"    // sockets of containerd's shims
	huskState       = "/run/husk"            // of husk's shims: pods/ID, runc/ID
	cgroupRoot      = "/sys/fs/cgroup"
)

// endLimit is how long monitors and shims may take to go after their pods.
const endLimit = 3 * time.Second

// killLimit is how long killed processes may take to go.
const killLimit = 10 * time.Second

// leftovers says what the node still has after an orderly end; outside is what it had outside its folder before.
func (n *Node) leftovers(outside []string) []error {
	var left []error
	for _, p := range outside {
		if _, err := os.Lstat(p); err == nil {
			left = append(left, fmt.Errorf("%s was left", p))
		}
	}
	procs, err := n.processes()
	for end := time.Now().Add(endLimit); err == nil && len(procs) > 0 && time.Now().Before(end); time.Sleep(poll) {
		procs, err = n.processes()
	}
	if err != nil {
		left = append(left, err)
	}
	for _, p := range procs {
		left = append(left, fmt.Errorf("process %d (%s) was left", p.PID, filepath.Base(executable(p.PID))))
	}
	mounts, err := n.mounts()
	if err != nil {
		left = append(left, err)
	}
	for _, m := range mounts {
		if m != filepath.Join(n.CRIO.Root, "overlay") { // containers/storage keeps its home mounted
			left = append(left, fmt.Errorf("mount %s was left", m))
		}
	}
	return left
}

// processes lists what runs for the node: everything below its reapers, and, for the case that a reaper was killed,
// everything in its pods' cgroups and every runtime program that works on the node's folder. A test's own shell may
// name that folder too, so the program must be one of the node's.
func (n *Node) processes() ([]Proc, error) {
	all, err := allProcs()
	if err != nil {
		return nil, err
	}
	var procs []Proc
	for _, r := range n.Reapers {
		if r.Alive() {
			procs = append(procs, descendants(all, r.PID)...)
		}
	}
	ours := []string{n.Bin.CRIO, n.Bin.Conmon, n.Bin.Runc, n.Bin.Registry}
	if n.Shim.Path != "" {
		ours = append(ours, n.Shim.Path)
	}
	in, err := n.inCgroups()
	if err != nil {
		return nil, err
	}
	above := ancestors(all, os.Getpid())
	for pid, s := range all {
		p := Proc{PID: pid, Start: s.start}
		if above[pid] || slices.Contains(procs, p) || s.state == 'Z' {
			continue
		}
		if in[pid] || slices.Contains(ours, executable(pid)) && mentions(pid, n.Dir) {
			procs = append(procs, p)
		}
	}
	return procs, nil
}

// killProcesses kills until nothing is left: a killed conmon's container falls to the reaper and is found next.
func (n *Node) killProcesses() error {
	for end := time.Now().Add(killLimit); ; time.Sleep(poll) {
		procs, err := n.processes()
		if err != nil {
			return err
		}
		if len(procs) == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes do not end: %v", procs)
		}
		for _, p := range procs {
			if err := p.signal(unix.SIGKILL); err != nil {
				return err
			}
		}
	}
	for _, r := range n.Reapers {
		if !r.wait(killLimit) {
			return fmt.Errorf("reaper %d does not end", r.PID)
		}
	}
	return nil
}

// mounts lists the mount points below the node's folder, innermost last.
func (n *Node) mounts() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return mountsBelow(b, n.Dir), nil
}

// mountsBelow picks the mount points below dir from a mountinfo file.
func mountsBelow(mountinfo []byte, dir string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for s := bufio.NewScanner(bytes.NewReader(mountinfo)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 5 {
			continue
		}
		if p := unescape.Replace(f[4]); strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	return points
}

func (n *Node) unmount() error {
	points, err := n.mounts()
	if err != nil {
		return err
	}
	return unmountAll(points)
}

// unmountAll unmounts mount points in the reverse of the order in which they were mounted.
func unmountAll(points []string) error {
	slices.Reverse(points)
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.UMOUNT_NOFOLLOW); err == nil {
			continue
		}
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// cgroups lists the tops of the node's cgroups: one in each hierarchy.
func (n *Node) cgroups() ([]string, error) {
	if n.CgroupParent == "" {
		return nil, nil
	}
	tops, err := filepath.Glob(cgroupRoot + "/*" + n.CgroupParent) // version 1
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	return append(tops, cgroupRoot+n.CgroupParent), nil // version 2
}

// walkCgroups calls do for every cgroup of the node, a parent after its children. Files in a cgroup are the kernel's.
func (n *Node) walkCgroups(do func(path string) error) error {
	tops, err := n.cgroups()
	if err != nil {
		return err
	}
	for _, top := range tops {
		var paths []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // no such hierarchy, or just gone
				return nil
			}
			if err == nil && d.IsDir() {
				paths = append(paths, path)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list cgroups: %w", err)
		}
		slices.Reverse(paths)
		for _, p := range paths {
			if err := do(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// inCgroups are the pids in the node's cgroups.
func (n *Node) inCgroups() (map[int]bool, error) {
	in := map[int]bool{}
	err := n.walkCgroups(func(path string) error {
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // just gone
			return nil
		}
		if err != nil {
			return fmt.Errorf("read cgroup: %w", err)
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return fmt.Errorf("read cgroup %s: %w", path, err)
			}
			in[pid] = true
		}
		return nil
	})
	return in, err
}

// removeCgroups removes the node's cgroups. rmdir takes only empty ones, and a cgroup is busy until its last process
// is reaped.
func (n *Node) removeCgroups() error {
	end := time.Now().Add(killLimit)
	return n.walkCgroups(func(path string) error {
		for {
			err := unix.Rmdir(path)
			if err == nil || errors.Is(err, unix.ENOENT) {
				return nil
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
				return fmt.Errorf("remove cgroup %s: %w", path, err)
			}
			time.Sleep(poll)
		}
	})
}

// outside lists the files and folders outside the node's own that it would leave if its pods were not removed in
// order: the state that the shims keep for its containers, the sockets of containerd's shims, and what libcni caches.
func (n *Node) outside() []string {
	var paths []string
	bundles, err := filepath.Glob(n.CRIO.RunRoot + "/overlay-containers/*")
	if err != nil {
		return nil // only for a malformed pattern
	}
	for _, b := range bundles {
		id := filepath.Base(b)
		paths = append(paths, filepath.Join(huskState, "pods", id), filepath.Join(huskState, "runc", id))
		address, err := os.ReadFile(filepath.Join(b, "userdata", "address"))
		socket := strings.TrimPrefix(strings.TrimSpace(string(address)), "unix://")
		if err == nil && filepath.Dir(socket) == containerdState {
			paths = append(paths, socket)
		}
	}
	if n.Network.Name == "" {
		return paths
	}
	cached, err := filepath.Glob(filepath.Join(cniResults, n.Network.Name+"-*"))
	if err != nil {
		return paths
	}
	return append(paths, cached...)
}

// removeOutside removes what outside has listed, as far as it is still there.
func removeOutside(paths []string) error {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for _, p := range paths {
		if err := unmountAll(mountsBelow(mountinfo, p)); err != nil {
			return err
		}
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("remove leftover: %w", err)
		}
	}
	return nil
}
