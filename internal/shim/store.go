package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox/layers"
)

// The directories of a store: the layers, which are the layer engine's, what the
// containers write, and the temporary files of a pull.
const (
	imagesDir     = "images"
	containersDir = "containers"
	tempDir       = "temp"
	storeDirMode  = 0o700
	// rootMode is that of a container's "/" where its image does not say.
	rootMode = 0o755
	// modeBits are the bits of a mode that chmod(2) sets.
	modeBits = 0o7777
)

// store is a pod's layers and the file systems on them, in a tmpfs that only the
// shim's mount namespace sees. With the namespace it is gone.
type store struct {
	dir     string
	mu      sync.Mutex
	mounted bool
	mounts  chan overlay
}

func newStore(dir string) *store { return &store{dir: dir, mounts: make(chan overlay)} }

// open mounts the store if it is not, with the given size as tmpfs writes sizes.
func (s *store) open(size string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted {
		return nil
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	options := "mode=0700,size=" + size
	err := unix.Mount("husk", s.dir, "tmpfs", flags, options+",noswap") // swap is a disk of the host's
	if errors.Is(err, unix.EINVAL) {                                    // Linux before 6.4
		err = unix.Mount("husk", s.dir, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("mount the pod's store: %w", err)
	}
	s.mounted = true
	go serveMounts(s.mounts)
	for _, dir := range []string{imagesDir, containersDir, tempDir} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), storeDirMode); err != nil {
			return fmt.Errorf("make the pod's store: %w", err)
		}
	}
	return nil
}

// close unmounts the store.
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mounted {
		return nil
	}
	if err := unix.Unmount(s.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the pod's store: %w", err)
	}
	s.mounted = false
	return nil
}

func (s *store) images() string { return filepath.Join(s.dir, imagesDir) }
func (s *store) temp() string   { return filepath.Join(s.dir, tempDir) }

func (s *store) container(id string) string { return filepath.Join(s.dir, containersDir, id) }

// mount makes a container's root file system from an image's layers and returns its
// path. label is the SELinux label of a mount, or "".
func (s *store) mount(id string, image layers.Image, label string) (string, error) {
	dirs := image.LayerDirs
	base := s.container(id)
	lower, links, rootfs := filepath.Join(base, "lower"), filepath.Join(base, "links"), filepath.Join(base, "rootfs")
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, dir := range []string{base, lower, links, upper, work, rootfs} {
		if err := os.Mkdir(dir, storeDirMode); err != nil {
			return "", fmt.Errorf("make the file system of container %s: %w", id, err)
		}
	}
	if err := copyRoot(upper, image.RootDir); err != nil {
		return "", fmt.Errorf("make the file system of container %s: %w", id, err)
	}
	if len(dirs) == 0 {
		dirs = []string{lower} // an image from scratch
	}
	names := make([]string, len(dirs))
	for i, layer := range dirs {
		name := strconv.Itoa(i)
		if err := os.Symlink(layer, filepath.Join(links, name)); err != nil {
			return "", fmt.Errorf("make the file system of container %s: %w", id, err)
		}
		names[len(dirs)-1-i] = name // overlay wants the uppermost first
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(names, ":"), upper, work)
	if label != "" {
		options += fmt.Sprintf(",context=%q", label)
	}
	done := make(chan error)
	s.mounts <- overlay{dir: links, target: rootfs, options: options, done: done}
	if err := <-done; err != nil {
		return "", fmt.Errorf("mount the file system of container %s from %d layers: %w", id, len(dirs), err)
	}
	return rootfs, nil
}

// copyRoot gives upper, which is what an overlay shows as its root, the mode and the
// owner of root; "" leaves the default.
func copyRoot(upper, root string) error {
	if root == "" {
		return os.Chmod(upper, rootMode)
	}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return fmt.Errorf("read the mode of the image's root: %w", err)
	}
	if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&modeBits)
}

// overlay is a mount whose lower directories are relative to dir. Their full paths
// would not fit into the page that mount(2) takes, from 25 layers on.
type overlay struct {
	dir, target, options string
	done                 chan<- error
}

// serveMounts mounts on a thread that has a working directory of its own. It never
// returns: the thread would end with it, and with the thread what it had started
// before it came here (PDEATHSIG), such as an OCI runtime at work.
func serveMounts(mounts <-chan overlay) {
	runtime.LockOSThread()
	unshared := unix.Unshare(unix.CLONE_FS)
	for m := range mounts {
		if unshared != nil {
			m.done <- fmt.Errorf("unshare: %w", unshared)
			continue
		}
		m.done <- m.mount()
	}
}

func (m overlay) mount() error {
	if err := unix.Chdir(m.dir); err != nil {
		return fmt.Errorf("enter %s: %w", m.dir, err)
	}
	// Not to keep the file system of a container that is gone.
	defer func() { _ = unix.Chdir("/") }()
	return unix.Mount("overlay", m.target, "overlay", 0, m.options)
}

// remove unmounts a container's file system and removes what it wrote. One that is
// not there is no error.
func (s *store) remove(id string) error {
	base := s.container(id)
	err := unix.Unmount(filepath.Join(base, "rootfs"), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount the file system of container %s: %w", id, err)
	}
	if err := os.RemoveAll(base); err != nil {
		return fmt.Errorf("remove the file system of container %s: %w", id, err)
	}
	return nil
}
