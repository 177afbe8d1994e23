package front

import (
	"context"
	"encoding/json"
	"path"
	"path/filepath"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// maxImageMounts bounds the image volumes of one container: each is a pull, and a part of
// an annotation of CRI-O's runtime spec.
const maxImageMounts = 128

// imageMounts finds the images that a guest-pull container's config mounts (KEP-4639).
// Its runtime is to mount them where the layers are: CRI-O would mount an image of the
// host, which for an encrypted one cannot even be there.
func (s *Server) imageMounts(ctx context.Context, h Handler, records []imageref.Record, config *cri.ContainerConfig) ([]bundlegen.ImageMount, error) {
	op := "create container " + config.GetMetadata().GetName()
	var mounts []bundlegen.ImageMount
	for _, mount := range config.GetMounts() {
		spec := mount.GetImage()
		if spec.GetImage() == "" {
			continue
		}
		if !h.PullsLayers {
			return nil, errdefs.Newf(errdefs.Unsupported, op,
				"runtime handler %q pulls images in the guest, where image volumes (here %s, at %s) are not supported",
				h.Name, bounded(spec.GetImage()), bounded(mount.GetContainerPath()))
		}
		if len(mounts) == maxImageMounts {
			return nil, errdefs.Newf(errdefs.InvalidArgument, op, "more than %d image volumes", maxImageMounts)
		}
		if err := checkImageMount(op, mount); err != nil {
			return nil, err
		}
		rec, pulled, err := s.choose(ctx, h, records, spec)
		if err != nil {
			return nil, err
		}
		if err := admit(h, rec); err != nil {
			return nil, err
		}
		mounts = append(mounts, bundlegen.ImageMount{
			Reference: pulled.Pinned().String(), Destination: path.Clean(mount.GetContainerPath()), SubPath: mount.GetImageSubPath(),
		})
	}
	return mounts, nil
}

// checkImageMount refuses a mount that asks for what the runtime will not do.
func checkImageMount(op string, mount *cri.Mount) error {
	refuse := func(format string, args ...any) error {
		return errdefs.Newf(errdefs.InvalidArgument, op, "image volume "+bounded(mount.GetImage().GetImage())+": "+format, args...)
	}
	given := []string{"ro", "nosuid", "nodev", "noexec"} // to every one of them
	for _, option := range mount.GetMountOptions() {
		if !slices.Contains(given, option) {
			return refuse("mount option %q: image volumes are ro,nosuid,nodev,noexec", bounded(option))
		}
	}
	switch to, sub := mount.GetContainerPath(), mount.GetImageSubPath(); {
	case mount.GetHostPath() != "":
		return refuse("it has a host path (%s) as well", bounded(mount.GetHostPath()))
	case !path.IsAbs(to) || path.Clean(to) == "/":
		return refuse("%q is no place in a container", bounded(to))
	case sub != "" && !filepath.IsLocal(sub):
		return refuse("the sub-path %q leads out of it", bounded(sub))
	}
	return nil
}

// giveMounts takes the image volumes out of what CRI-O is asked for, and tells the runtime
// of them instead.
func giveMounts(mounts []bundlegen.ImageMount, config *cri.ContainerConfig) error {
	if len(mounts) == 0 {
		return nil
	}
	text, err := json.Marshal(mounts)
	if err != nil {
		return errdefs.New(errdefs.Internal, "encode image volumes", err)
	}
	config.Annotations[annotations.ImageMounts] = string(text) // made by apply
	config.Mounts = slices.DeleteFunc(config.GetMounts(), func(m *cri.Mount) bool { return m.GetImage().GetImage() != "" })
	return nil
}
