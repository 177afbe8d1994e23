package podrun

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// cgroupMount is where every distribution mounts cgroups, of either version.
	cgroupMount = "/sys/fs/cgroup"
	// emptyPoll is how often a cgroup whose processes were killed is looked at.
	emptyPoll = 10 * time.Millisecond
)

// removeTree removes a directory. Where something is mounted below it, it does not: the
// contents would be deleted too.
func removeTree(dir string) error {
	real, err := filepath.EvalSymlinks(dir) // as mounts are listed: /var/run is a link on many a machine
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	if len(mounts) > 0 {
		return errdefs.Newf(errdefs.InUse, "remove "+dir, "%s is mounted", mounts[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}

// emptyDir removes what is in a directory.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		err = errors.Join(err, removeTree(filepath.Join(dir, e.Name())))
	}
	return err
}

// removeCgroup kills what is in a pod's cgroup and below it, and removes it, in every
// hierarchy. One that is not there is no error. The group comes from a record, which may
// be damaged or another program's: one that is not named after the pod, the root above
// all, which holds every process of the machine, is never touched.
func removeCgroup(ctx context.Context, pod bundles.Pod) error {
	group := pod.CgroupParent
	if group == "" {
		return nil
	}
	if !path.IsAbs(group) || path.Clean(group) != group || pod.ID == "" || path.Base(group) != podGroupPrefix+pod.ID {
		return errdefs.Newf(errdefs.Internal, "remove cgroup "+group, "it is not the cgroup of pod %s", pod.ID)
	}
	roots := []string{cgroupMount}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", group, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			roots = append(roots, filepath.Join(cgroupMount, e.Name()))
		}
	}
	for _, root := range roots {
		for {
			err := killGroup(filepath.Join(root, group))
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup %s: %w", group, err)
			case <-time.After(emptyPoll):
			}
		}
	}
	return nil
}

// killGroup removes a group of one hierarchy, and kills what keeps it from that.
func killGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := killGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	procs, readErr := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	for line := range strings.Lines(string(procs)) {
		if pid, convErr := strconv.Atoi(strings.TrimSpace(line)); convErr == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL) // or it has ended meanwhile
		}
	}
	return fmt.Errorf("%s: %w", dir, err)
}
