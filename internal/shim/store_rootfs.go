package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/idmap"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// rootMode is that of a container's "/" where its image does not say.
	rootMode = 0o755
	// modeBits are the bits of a mode that chmod(2) sets.
	modeBits = 0o7777
	// searchMode lets a user namespace pass, and see nothing.
	searchMode = 0o711
	// rootfsTmpfs are the options of the file system with the mount points of root file
	// systems in user namespaces: nobody writes to it.
	rootfsTmpfs = "mode=0711,size=1m"
)

// The directories of a container, and of an image that is mounted into it.
const (
	rootfsDir  = "rootfs"
	mountsDir  = "mounts"
	volumesDir = "volumes"
	lowerDir   = "lower"
	linksDir   = "links"
	upperDir   = "upper"
	workDir    = "work"
	viewDir    = "view"
	mergedDir  = "merged"
	targetDir  = "target"
)

// view is how a container sees layers. The zero value is as they are.
type view struct {
	// label is the SELinux label of a mount, or "".
	label string
	// ids is the container's user namespace.
	ids bundlegen.Mapping
}

// mount makes a container's root file system from an image's layers and returns its
// path.
func (s *store) mount(id string, image layers.Image, v view) (string, error) {
	base := s.container(id)
	rootfs := filepath.Join(base, rootfsDir)
	err := makeDirs(base, filepath.Join(base, mountsDir), filepath.Join(base, volumesDir))
	if err == nil && !v.ids.IsZero() {
		rootfs, err = s.openRootfs(id)
	} else if err == nil {
		err = makeDirs(rootfs)
	}
	if err == nil {
		err = s.overlay(base, rootfs, image, v, true)
	}
	if err != nil {
		return "", fmt.Errorf("make the file system of container %s: %w", id, err)
	}
	return rootfs, nil
}

func makeDirs(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.Mkdir(dir, storeDirMode); err != nil {
			return err
		}
	}
	return nil
}

// openRootfs makes the directory for a root file system that its own root can enter.
func (s *store) openRootfs(id string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	top := s.pod.Rootfs()
	if !s.rootfs {
		if err := os.MkdirAll(top, searchMode); err != nil {
			return "", err
		}
		if err := unix.Mount("husk", top, "tmpfs", storeFlags, rootfsTmpfs); err != nil {
			return "", fmt.Errorf("mount a tmpfs on %s: %w", top, err)
		}
		s.rootfs = true
	}
	dir := filepath.Join(top, id)
	if err := os.Mkdir(dir, rootMode); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, rootMode) // whatever the umask is
}

// overlay mounts an image's layers on target. base is a directory of its own, with which
// it goes. Without write it is read-only, and nothing in it can be run or is a device.
func (s *store) overlay(base, target string, image layers.Image, v view, write bool) error {
	lower, links, upper, work := filepath.Join(base, lowerDir), filepath.Join(base, linksDir), filepath.Join(base, upperDir), filepath.Join(base, workDir)
	if err := makeDirs(lower, links, upper, work); err != nil {
		return err
	}
	if err := copyRoot(upper, image.RootDir, v.ids); err != nil {
		return err
	}
	dirs, closeView, err := s.see(filepath.Join(base, viewDir), image.LayerDirs, v.ids)
	if err != nil {
		return err
	}
	defer closeView() // the overlay has mounts of its own of what is below it
	if len(dirs) == 0 {
		dirs = []string{lower} // an image from scratch
	}
	flags := uintptr(0)
	options := fmt.Sprintf("upperdir=%s,workdir=%s", upper, work)
	if !write {
		// The kernel wants two layers; the uppermost gives "/" its owner and mode.
		flags, options = unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""
		dirs = append(dirs, upper)
	}
	names := make([]string, len(dirs))
	for i, dir := range dirs {
		name := strconv.Itoa(i)
		if err := os.Symlink(dir, filepath.Join(links, name)); err != nil {
			return err
		}
		names[len(dirs)-1-i] = name // overlay wants the uppermost first
	}
	options = strings.TrimSuffix("lowerdir="+strings.Join(names, ":")+","+options, ",")
	if v.label != "" {
		if err := checkLabel(v.label); err != nil {
			return err
		}
		options += fmt.Sprintf(`,context="%s"`, v.label)
	}
	done := make(chan error)
	s.mounts <- overlay{dir: links, target: target, options: options, flags: flags, done: done}
	if err := <-done; err != nil {
		return overlayError(len(dirs), err)
	}
	return nil
}

// checkLabel refuses a label that would not end where it is quoted: the kernel knows no
// escapes, so that what follows a quotation mark would be options of the mount, such as
// other layers. A pod's seLinuxOptions.level is a part of the label, and nobody has looked
// at it.
func checkLabel(label string) error {
	if strings.ContainsAny(label, `"\`) || strings.ContainsFunc(label, unicode.IsControl) {
		return errdefs.Newf(errdefs.InvalidArgument, "label the file system", "%q is no SELinux label", label)
	}
	return nil
}

// overlayError says what a mount that the kernel refuses may come of. Who chose the
// kernel and the disk has to know, not who made the pod.
func overlayError(layers int, err error) error {
	err = fmt.Errorf("mount %d layers: %w", layers, err)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return errdefs.Newf(errdefs.Unsupported, "put an overlay on the file system of the store",
			"%w (a disk must have d_type and extended attributes, and be no overlay itself; user namespaces need Linux 5.19)", err)
	}
	return err
}

// see returns the directories in which a container finds its layers: with a user
// namespace those of a view that is mounted at dir, until done is called.
func (s *store) see(dir string, layerDirs []string, ids bundlegen.Mapping) (dirs []string, done func(), err error) {
	if ids.IsZero() || len(layerDirs) == 0 {
		return layerDirs, func() {}, nil
	}
	if err := makeDirs(dir); err != nil {
		return nil, nil, err
	}
	for _, layer := range layerDirs {
		rel, err := filepath.Rel(s.images(), layer)
		if err != nil || !filepath.IsLocal(rel) {
			return nil, nil, fmt.Errorf("layer %s is not in the store", layer)
		}
		dirs = append(dirs, filepath.Join(dir, rel))
	}
	if err := idmap.Mount(ids, s.images(), dir); err != nil {
		return nil, nil, err
	}
	return dirs, func() { _ = detach(dir) }, nil // remove does it again, and says why not
}

// copyRoot gives upper, which is what an overlay shows as its root, the mode and the
// owner of root; "" leaves the default.
func copyRoot(upper, root string, ids bundlegen.Mapping) error {
	st := unix.Stat_t{Mode: rootMode}
	if root != "" {
		if err := unix.Lstat(root, &st); err != nil {
			return fmt.Errorf("read the mode of the image's root: %w", err)
		}
	}
	uid, gid, err := ids.Host(st.Uid, st.Gid)
	if err != nil {
		return err
	}
	if err := os.Lchown(upper, int(uid), int(gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&modeBits)
}

// overlay is a mount whose lower directories are relative to dir. Their full paths
// would not fit into the page that mount(2) takes, from 25 layers on.
type overlay struct {
	dir, target, options string
	flags                uintptr
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
	return unix.Mount("overlay", m.target, "overlay", m.flags, m.options)
}

// detach unmounts what is mounted at path. Nothing there is no error.
func detach(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "unmount", Path: path, Err: err}
	}
	return nil
}

// remove unmounts a container's file systems and removes what it wrote. One that is
// not there is no error.
func (s *store) remove(id string) error {
	base := s.container(id)
	own := filepath.Join(s.pod.Rootfs(), id)
	if err := errors.Join(
		detachMounts(base), detach(filepath.Join(base, rootfsDir)), detach(filepath.Join(base, viewDir)), detach(own)); err != nil {
		return fmt.Errorf("unmount the file system of container %s: %w", id, err)
	}
	if err := removeContainer(filepath.Split(base)); err != nil {
		return fmt.Errorf("remove the file system of container %s: %w", id, err)
	}
	if err := os.Remove(own); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the file system of container %s: %w", id, err)
	}
	return nil
}

func removeContainer(dir, id string) (err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return pod.RemoveAll(f, id)
}
