// Package idmap shows a directory's files to a user namespace as if they belonged to its
// own users: an idmapped mount (mount_setattr(2)).
//
// Layers are unpacked once, with the owners that the image says. Each pod with a user
// namespace has a range of the host's users of its own, and the layers must look to it as
// if they had been unpacked for that range.
package idmap

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// Mount mounts a copy of the directory source at target, read-only, in which files have
// the owners that m makes of theirs. A kernel or a file system that cannot do it is
// Unsupported, and ranges that the kernel does not take are InvalidArgument.
func Mount(m bundlegen.Mapping, source, target string) (err error) {
	defer func() {
		if err != nil {
			err = errdefs.New(kindOf(err), "map the users of "+source, err)
		}
	}()
	ns, err := namespace(m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	defer func() { err = errors.Join(err, unix.Close(tree)) }()
	// Read-only: were the copy still there when its container is removed, its layers,
	// which are those of the whole pod, must not go with it.
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY,
		Userns_fd: uint64(ns.Fd()),
	}); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// kindOf tells what cannot be done here from what should have been.
func kindOf(err error) errdefs.Kind {
	switch {
	case errors.Is(err, errNamespace) && errors.Is(err, unix.EINVAL):
		return errdefs.InvalidArgument
	case errors.Is(err, errNamespace) && errors.Is(err, unix.ENOSPC), // user.max_user_namespaces
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return errdefs.Unsupported
	}
	return errdefs.Internal
}

var errNamespace = errors.New("make a user namespace")

// namespace makes a user namespace with the mapping: mount_setattr(2) takes none in
// another form. It is not the container's own, which may not be there yet and of which
// nobody could tell whether it has this mapping.
func namespace(m bundlegen.Mapping) (_ *os.File, err error) {
	// The thread traces the child, and the child dies with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pidfd := -1
	// Under ptrace the child stops before its first instruction, and it never gets there.
	proc, err := os.StartProcess("/proc/self/exe", []string{"husk-userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: goMappings(m.UIDs),
		GidMappings: goMappings(m.GIDs),
		Ptrace:      true,
		Pdeathsig:   syscall.SIGKILL,
		PidFD:       &pidfd,
	}})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNamespace, err)
	}
	defer func() {
		// Whoever reaps the shim's children may have been faster than Wait.
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_ = unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED, nil)
		_ = unix.Close(pidfd)
		err = errors.Join(err, proc.Release())
	}()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", proc.Pid))
}

func goMappings(ranges []rspec.LinuxIDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(ranges))
	for i, r := range ranges {
		out[i] = syscall.SysProcIDMap{ContainerID: int(r.ContainerID), HostID: int(r.HostID), Size: int(r.Size)}
	}
	return out
}
