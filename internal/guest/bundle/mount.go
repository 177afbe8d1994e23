package bundle

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// rootMode is that of a container's "/" where its image does not say.
	rootMode = 0o755
	// modeBits are the bits of a mode that chmod(2) sets.
	modeBits = 0o7777
	// maxMountLine bounds a line of mountinfo: mount(2) takes a page of options.
	maxMountLine = 64 << 10
)

// mount mounts the overlay at the directory that target is a descriptor of.
func (s state) mount(layers Layers, target int) error {
	const op = "mount rootfs of bundle"
	for _, sub := range []string{"upper", "work", "links", "lower"} {
		if err := os.Mkdir(s.path(sub), 0o700); err != nil {
			return errdefs.New(errdefs.Internal, op, err)
		}
	}
	if err := copyRoot(s.path("upper"), layers.RootDir); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	dirs := layers.Dirs
	if len(dirs) == 0 {
		dirs = []string{s.path("lower")}
	}
	names := make([]string, len(dirs))
	for i, layer := range dirs {
		name := strconv.Itoa(i)
		if err := os.Symlink(layer, filepath.Join(s.path("links"), name)); err != nil {
			return errdefs.New(errdefs.Internal, op, err)
		}
		names[len(dirs)-1-i] = name // overlay wants the uppermost first
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(names, ":"), s.path("upper"), s.path("work"))
	if err := mountFrom(s.path("links"), fdPath(target), options); err != nil {
		return errdefs.Newf(errdefs.Internal, op, "overlay of %d layers: %w", len(dirs), err)
	}
	return nil
}

// copyRoot gives upper, which an overlay shows as its root, the mode and the owner of root.
func copyRoot(upper, root string) error {
	if root == "" {
		return os.Chmod(upper, rootMode)
	}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return err
	}
	if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&modeBits)
}

// mountFrom mounts an overlay whose lower directories are relative to dir: the full paths
// of many layers would not fit into the page that mount(2) takes. The working directory is
// that of a thread of its own, which ends afterwards.
func mountFrom(dir, target, options string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not to be used again
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = unix.Mount("overlay", target, "overlay", 0, options)
		}
		done <- err
	}()
	return <-done
}

// unmount unmounts the overlay wherever this mount namespace has it.
func (s state) unmount() error {
	all, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, point := range all[s.path("upper")] {
		if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// readMounts returns the mount points of overlays by their upper directory.
func readMounts(mountinfo string) (map[string][]string, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	found := map[string][]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxMountLine)
	for lines.Scan() {
		// proc(5): ID parent major:minor root point options [tags] - type source options
		fields, tail, ok := strings.Cut(lines.Text(), " - overlay ")
		head := strings.Fields(fields)
		if !ok || len(head) < 5 {
			continue
		}
		for option := range strings.SplitSeq(tail[strings.IndexByte(tail, ' ')+1:], ",") {
			if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
				found[upper] = append(found[upper], unescape(head[4]))
			}
		}
	}
	return found, lines.Err()
}

// unescape reads the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if b, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(b))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// elsewhere returns the upper directories that are mounted in other mount namespaces: a
// container that runs has its root file system in one of its own.
func elsewhere() (map[string]bool, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	seen, found := map[string]bool{own: true}, map[string]bool{}
	for _, process := range processes {
		ns, err := os.Readlink(process + "/ns/mnt")
		if err != nil || seen[ns] {
			continue // gone meanwhile, or a kernel thread
		}
		mounts, err := readMounts(process + "/mountinfo")
		switch {
		case err == nil:
			seen[ns] = true
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
			continue // it ended; another process may have the namespace
		default:
			return nil, err
		}
		for upper := range mounts {
			found[upper] = true
		}
	}
	return found, nil
}
