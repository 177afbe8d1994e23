package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// mountImage makes the content of an image, read-only, and returns the path of what
// subPath names in it, a directory or a file; of all of it if that is empty. number tells
// the images of a container apart. A subPath that is not in the image is InvalidArgument.
func (s *store) mountImage(id string, number int, image layers.Image, subPath string, v view) (string, error) {
	base := filepath.Join(s.container(id), mountsDir, strconv.Itoa(number))
	merged := filepath.Join(base, mergedDir)
	if err := makeDirs(base, merged); err != nil {
		return "", fmt.Errorf("mount an image into container %s: %w", id, err)
	}
	if err := s.overlay(base, merged, image, v, false); err != nil {
		return "", fmt.Errorf("mount an image into container %s: %w", id, err)
	}
	if subPath == "" {
		return merged, nil
	}
	target := filepath.Join(base, targetDir)
	if err := pick(merged, subPath, target); err != nil {
		return "", fmt.Errorf("mount an image into container %s: %w", id, err)
	}
	return target, nil
}

// mountVolume returns a path at which a directory of a container's root file system is
// mounted, to be bound into the container: it can be written to where the rest cannot.
func (s *store) mountVolume(id string, number int, rootfs, dir string) (string, error) {
	target := filepath.Join(s.container(id), volumesDir, strconv.Itoa(number))
	if err := pick(rootfs, dir, target); err != nil {
		return "", fmt.Errorf("mount a volume of container %s: %w", id, err)
	}
	return target, nil
}

// pick mounts what name is in root at target, which it makes. What is in root may be
// hostile: no symbolic link leads out of it, as if it were "/", and the mount is of
// exactly what was looked at.
func pick(root, name, target string) (err error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer func() { err = errors.Join(err, unix.Close(dir)) }()
	found, err := openInRoot(dir, name)
	if err != nil {
		return errdefs.New(errdefs.InvalidArgument, "find "+strconv.Quote(name)+" in the image", err)
	}
	defer func() { err = errors.Join(err, unix.Close(found)) }()
	if err := makeTarget(found, target); err != nil {
		return err
	}
	tree, err := unix.OpenTree(found, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer func() { err = errors.Join(err, unix.Close(tree)) }()
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// maxLookups is how often a path is looked up: the kernel gives up on one with ".." when
// anything is renamed or mounted meanwhile, anywhere on the machine (openat2(2), EAGAIN).
const maxLookups = 10_000

// openInRoot finds what name is in dir as if that were "/".
func openInRoot(dir int, name string) (fd int, err error) {
	for range maxLookups {
		fd, err = unix.Openat2(dir, name, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// makeTarget makes something of the same type as found to mount it on. Only directories
// and regular files are mounted: whoever opens a FIFO of an image's waits for ever.
func makeTarget(found int, target string) error {
	var st unix.Stat_t
	if err := unix.Fstat(found, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return makeDirs(target)
	case unix.S_IFREG:
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, specMode)
		if err != nil {
			return err
		}
		return f.Close()
	}
	return errdefs.Newf(errdefs.InvalidArgument, "mount a part of an image", "it is neither a directory nor a regular file")
}

// detachMounts unmounts the images and volumes of a container.
func detachMounts(base string) error {
	var errs []error
	for _, kind := range []string{mountsDir, volumesDir} {
		entries, err := os.ReadDir(filepath.Join(base, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			dir := filepath.Join(base, kind, e.Name())
			if kind == volumesDir {
				errs = append(errs, detach(dir))
				continue
			}
			errs = append(errs, detach(filepath.Join(dir, targetDir)), detach(filepath.Join(dir, mergedDir)), detach(filepath.Join(dir, viewDir)))
		}
	}
	return errors.Join(errs...)
}
