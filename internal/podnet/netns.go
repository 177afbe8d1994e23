package podnet

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// maxMounts bounds how often a namespace is unmounted: one that somebody mounts as fast
// must not keep us.
const maxMounts = 16

// NewNetns makes a network namespace whose loopback is up, and mounts it on path, which
// must not be there. The namespace lives until
// [RemoveNetns] and the end of the last process in it. On an error nothing is left.
func NewNetns(path string) (err error) {
	op := "make the network namespace " + path
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		kind := errdefs.Internal
		if errors.Is(err, fs.ErrExist) {
			kind = errdefs.InvalidArgument
		}
		return errdefs.New(kind, op, err)
	}
	if err := file.Close(); err != nil {
		return errdefs.New(errdefs.Internal, op, errors.Join(err, os.Remove(path)))
	}
	if err := onOwnThread(func() error { return mountNew(path) }); err != nil {
		return errdefs.New(errdefs.Internal, op, errors.Join(err, RemoveNetns(path)))
	}
	return nil
}

// onOwnThread runs change on a thread that ends with it, so that nothing else ever runs
// in what it changes. The main thread never ends: it would stay in the pod's network, and
// be what /proc says of the whole process.
func onOwnThread(change func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, which ends the thread
		if unix.Gettid() != unix.Getpid() {
			done <- change()
			return
		}
		defer runtime.UnlockOSThread()
		done <- onOwnThread(change) // on another, as this one is held
	}()
	return <-done
}

// mountNew takes the calling thread into a new namespace, and mounts that on path.
func mountNew(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// Not /proc/self: that is the main thread's.
	own := "/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net"
	return os.NewSyscallError("mount", unix.Mount(own, path, "", unix.MS_BIND, ""))
}

// RemoveNetns unmounts the namespace and removes the file. A path that is not there is no
// error, and one that was left without a namespace is only removed.
func RemoveNetns(path string) error {
	op := "remove the network namespace " + path
	for range maxMounts {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case err == nil:
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		case !errors.Is(err, unix.EINVAL): // EINVAL: not mounted
			return errdefs.New(errdefs.Internal, op, os.NewSyscallError("umount", err))
		}
		break
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

// isNamespace reports whether path is a mounted namespace, or one of a process. An error
// is that it cannot be told, or is not there.
func isNamespace(path string) (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return stat.Type == unix.NSFS_MAGIC || stat.Type == unix.PROC_SUPER_MAGIC, nil
}
