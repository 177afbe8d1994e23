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
)

// The directories of a store: the layers, which are the layer engine's, what the
// containers write, and the temporary files of a pull.
const (
	imagesDir     = "images"
	containersDir = "containers"
	tempDir       = "temp"
	storeDirMode  = 0o700
	// rootMode is that of a container's "/", which its users enter.
	rootMode = 0o755
)

// store is a pod's layers and the file systems on them, in a tmpfs that only the
// shim's mount namespace sees. With the namespace it is gone.
type store struct {
	dir     string
	mu      sync.Mutex
	mounted bool
}

func newStore(dir string) *store { return &store{dir: dir} }

// open mounts the store if it is not, with the given size as tmpfs writes sizes.
func (s *store) open(size string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted {
		return nil
	}
	if err := unix.Mount("husk", s.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size="+size); err != nil {
		return fmt.Errorf("mount the pod's store: %w", err)
	}
	s.mounted = true
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

// mount makes a container's root file system from unpacked layers, the lowest
// first, and returns its path. label is the SELinux label of a mount, or "".
func (s *store) mount(id string, layers []string, label string) (string, error) {
	base := s.container(id)
	lower, links, rootfs := filepath.Join(base, "lower"), filepath.Join(base, "links"), filepath.Join(base, "rootfs")
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, dir := range []string{base, lower, links, upper, work, rootfs} {
		if err := os.Mkdir(dir, storeDirMode); err != nil {
			return "", fmt.Errorf("make the file system of container %s: %w", id, err)
		}
	}
	if err := os.Chmod(upper, rootMode); err != nil {
		return "", fmt.Errorf("make the file system of container %s: %w", id, err)
	}
	if len(layers) == 0 {
		layers = []string{lower} // an image from scratch
	}
	names := make([]string, len(layers))
	for i, layer := range layers {
		name := strconv.Itoa(i)
		if err := os.Symlink(layer, filepath.Join(links, name)); err != nil {
			return "", fmt.Errorf("make the file system of container %s: %w", id, err)
		}
		names[len(layers)-1-i] = name // overlay wants the uppermost first
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(names, ":"), upper, work)
	if label != "" {
		options += fmt.Sprintf(",context=%q", label)
	}
	if err := mountIn(links, rootfs, options); err != nil {
		return "", fmt.Errorf("mount the file system of container %s from %d layers: %w", id, len(layers), err)
	}
	return rootfs, nil
}

// mountIn mounts an overlay with lower directories that are relative to dir. Their
// full paths would not fit into the page that mount(2) takes, from 25 layers on.
func mountIn(dir, target, options string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has a working directory of its own and ends here
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Chdir(dir); err != nil {
			done <- fmt.Errorf("enter %s: %w", dir, err)
			return
		}
		done <- unix.Mount("overlay", target, "overlay", 0, options)
	}()
	return <-done
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
