package bundlegen

import (
	"errors"
	"path"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Complete finishes a spec that was written without a rootfs, now that the image is
// unpacked at rootfs, an absolute path: root.path, the user and HOME. It makes the
// working directory, which belongs to root as CRI-O's and runc's do, and the image's
// volume directories, which belong to the user as CRI-O's do, where they are missing and
// no mount covers them. In a user namespace these are its root and its user, as the host
// sees them. Its errors are those of [Resolve] and [MappingOf], TooLarge for too many
// volumes, and InvalidArgument for a spec or a rootfs in which the directories cannot be;
// the spec is then unchanged.
func Complete(spec *rspec.Spec, rootfs string, u User, volumes []string) (id Identity, err error) {
	const op = "complete container spec"
	if spec.Process == nil {
		return Identity{}, errdefs.Newf(errdefs.InvalidArgument, op, "it has no process")
	}
	cwd := firstOf(spec.Process.Cwd, "/")
	if !path.IsAbs(cwd) {
		return Identity{}, errdefs.Newf(errdefs.InvalidArgument, op, "working directory %q is not an absolute path", cwd)
	}
	if err := checkVolumes(volumes); err != nil {
		return Identity{}, err
	}
	mapping, err := MappingOf(spec)
	if err != nil {
		return Identity{}, err
	}
	root, err := openRootDir(rootfs)
	if err != nil {
		return Identity{}, err
	}
	defer func() { err = errors.Join(err, root.close()) }()
	if id, err = root.resolveUser(u); err != nil {
		return Identity{}, err
	}
	if _, _, err := mapping.Host(id.UID, id.GID); err != nil {
		return Identity{}, err
	}
	for _, v := range volumes {
		if err := root.mkdirFor(spec.Mounts, v, mapping, id.UID, id.GID); err != nil {
			return Identity{}, errdefs.New(errdefs.InvalidArgument, op, err)
		}
	}
	if err := root.mkdirFor(spec.Mounts, cwd, mapping, 0, 0); err != nil {
		return Identity{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if spec.Root == nil {
		spec.Root = &rspec.Root{}
	}
	spec.Root.Path = root.path
	spec.Process.Cwd = cwd
	id.Apply(spec.Process)
	return id, nil
}

// mkdirFor makes dir for a user and a group of the container, unless a mount covers it.
func (d rootDir) mkdirFor(mounts []rspec.Mount, dir string, m Mapping, uid, gid uint32) error {
	if Covered(mounts, dir) {
		return nil
	}
	uid, gid, err := m.Host(uid, gid)
	if err != nil {
		return err
	}
	return d.mkdirAll(dir, uid, gid)
}

// Covered reports whether dir lies in something that is mounted over the rootfs: there
// it would be hidden.
func Covered(mounts []rspec.Mount, dir string) bool {
	dir = path.Join("/", dir)
	for _, m := range mounts {
		at := path.Join("/", m.Destination)
		if dir == at || strings.HasPrefix(dir, strings.TrimSuffix(at, "/")+"/") {
			return true
		}
	}
	return false
}
