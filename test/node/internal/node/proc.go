package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// poll is how often a wait looks again.
const poll = 20 * time.Millisecond

// Proc is a process: a pid and its start time, which together are never used twice.
type Proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since boot
}

// stat is what /proc/PID/stat says of a process.
type stat struct {
	ppid  int
	start uint64
	state byte
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat reads the fields after the command name, which may itself hold spaces and brackets.
func parseStat(b []byte) (stat, error) {
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return stat{}, fmt.Errorf("short stat line %q", b)
	}
	ppid, err := strconv.Atoi(string(f[1]))
	if err != nil {
		return stat{}, fmt.Errorf("parent in stat: %w", err)
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time in stat: %w", err)
	}
	return stat{ppid: ppid, start: start, state: f[0][0]}, nil
}

// process returns the Proc that has the pid now.
func process(pid int) (Proc, error) {
	s, err := readStat(pid)
	if err != nil {
		return Proc{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return Proc{PID: pid, Start: s.start}, nil
}

// Alive says whether the process still runs. A zombie does not.
func (p Proc) Alive() bool {
	s, err := readStat(p.PID)
	return err == nil && s.start == p.Start && s.state != 'Z' && s.state != 'X'
}

// signal sends sig, unless the process is gone.
func (p Proc) signal(sig unix.Signal) error {
	if !p.Alive() {
		return nil
	}
	if err := unix.Kill(p.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// wait waits until the process is gone; false means that it is not, after the limit.
func (p Proc) wait(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(poll) {
		if !p.Alive() {
			return true
		}
	}
	return !p.Alive()
}

// allProcs lists the processes of the machine with what their stat says.
func allProcs() (map[int]stat, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := make(map[int]stat, len(dirs))
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil { // else it has just gone
			all[pid] = s
		}
	}
	return all, nil
}

// descendants lists the living processes below root, parents before children.
func descendants(all map[int]stat, root int) []Proc {
	var below []Proc
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for pid, s := range all {
			if s.ppid == queue[0] && pid != root {
				queue = append(queue, pid)
				if s.state != 'Z' && s.state != 'X' {
					below = append(below, Proc{PID: pid, Start: s.start})
				}
			}
		}
	}
	return below
}

// ancestors are pid and the processes above it.
func ancestors(all map[int]stat, pid int) map[int]bool {
	up := map[int]bool{}
	for pid > 0 && !up[pid] {
		up[pid] = true
		pid = all[pid].ppid
	}
	return up
}

// mentions says whether the process works on dir: it stands in its command line or its working directory.
func mentions(pid int, dir string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err == nil && strings.Contains(string(cmdline), dir+"/") {
		return true
	}
	cwd, err := os.Readlink(filepath.Join(proc, "cwd"))
	return err == nil && strings.HasPrefix(cwd+"/", dir+"/")
}

func executable(pid int) string {
	exe, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(exe, " (deleted)")
}
