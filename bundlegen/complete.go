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
// no mount covers them. Its errors are those of [Resolve], TooLarge for too many volumes,
// and InvalidArgument for a spec or a rootfs in which the directories cannot be; the spec
// is then unchanged.
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
	root, err := openRootDir(rootfs)
	if err != nil {
		return Identity{}, err
	}
	defer func() { err = errors.Join(err, root.close()) }()
	if id, err = root.resolveUser(u); err != nil {
		return Identity{}, err
	}
	for _, v := range volumes {
		if covered(spec.Mounts, v) {
			continue
		}
		if err := root.mkdirAll(v, id.UID, id.GID); err != nil {
			return Identity{}, errdefs.New(errdefs.InvalidArgument, op, err)
		}
	}
	if !covered(spec.Mounts, cwd) {
		if err := root.mkdirAll(cwd, 0, 0); err != nil {
			return Identity{}, errdefs.New(errdefs.InvalidArgument, op, err)
		}
	}
	if spec.Root == nil {
		spec.Root = &rspec.Root{}
	}
	spec.Root.Path = root.path
	spec.Process.Cwd = cwd
	id.Apply(spec.Process)
	return id, nil
}

// covered reports whether dir lies in something that is mounted over the rootfs: there
// it would be hidden.
func covered(mounts []rspec.Mount, dir string) bool {
	dir = path.Join("/", dir)
	for _, m := range mounts {
		at := path.Join("/", m.Destination)
		if dir == at || strings.HasPrefix(dir, strings.TrimSuffix(at, "/")+"/") {
			return true
		}
	}
	return false
}
