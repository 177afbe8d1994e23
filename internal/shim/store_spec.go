package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

const (
	// maxImageMounts bounds how many images one container mounts: each is a pull and a
	// file system.
	maxImageMounts = 128
	// maxImageMountsJSON bounds the annotation that says which.
	maxImageMountsJSON = 256 << 10
	// bindType is the type of a mount that shows a directory or a file elsewhere.
	bindType = "bind"
	// crioVolumes is where, in a container's bundle, CRI-O makes an empty directory for
	// each volume of the image if its image_volumes is "bind".
	crioVolumes = "mounts"
)

// imageMounts returns the images that the container is to see, which the front has
// resolved.
func imageMounts(spec *rspec.Spec) ([]bundlegen.ImageMount, error) {
	const op = "annotation " + annotations.ImageMounts
	text, ok := spec.Annotations[annotations.ImageMounts]
	if !ok {
		return nil, nil
	}
	if len(text) > maxImageMountsJSON {
		return nil, errdefs.Newf(errdefs.TooLarge, op, "%d bytes, at most %d", len(text), maxImageMountsJSON)
	}
	var mounts []bundlegen.ImageMount
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	dec.DisallowUnknownFields() // a newer front may mean a restriction by it
	if err := dec.Decode(&mounts); err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errdefs.Newf(errdefs.InvalidArgument, op, "data after the value")
	}
	if len(mounts) > maxImageMounts {
		return nil, errdefs.Newf(errdefs.TooLarge, op, "%d images, at most %d", len(mounts), maxImageMounts)
	}
	for _, m := range mounts {
		if err := checkImageMount(m); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, op, err)
		}
	}
	return mounts, nil
}

func checkImageMount(m bundlegen.ImageMount) error {
	op := "mount image " + m.Reference
	ref, err := imageref.ParseReference(m.Reference)
	if err != nil {
		return err
	}
	if ref.Digest().IsZero() {
		return errdefs.Newf(errdefs.InvalidArgument, op, "the reference has no digest")
	}
	if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" || strings.ContainsRune(m.Destination, 0) {
		return errdefs.Newf(errdefs.InvalidArgument, op, "%q is no place for it", m.Destination)
	}
	if m.SubPath != "" && (!filepath.IsLocal(m.SubPath) || strings.ContainsRune(m.SubPath, 0)) {
		return errdefs.Newf(errdefs.InvalidArgument, op, "%q is not a path in it", m.SubPath)
	}
	return nil
}

// addImageMounts mounts the images and puts them into the spec.
func (s *store) addImageMounts(id string, spec *rspec.Spec, mounts []bundlegen.ImageMount, images []layers.Image, v view) error {
	for i, m := range mounts {
		source, err := s.mountImage(id, i, images[i], m.SubPath, v)
		if err != nil {
			return errdefs.New(errdefs.KindOf(err), "mount image "+m.Reference, err)
		}
		spec.Mounts = insertMount(spec.Mounts, rspec.Mount{
			Type: bindType, Source: source, Destination: path.Clean(m.Destination),
			Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev", "noexec"},
		})
	}
	return nil
}

// insertMount puts a mount before those that lie in it, which it would else hide.
func insertMount(mounts []rspec.Mount, m rspec.Mount) []rspec.Mount {
	i := slices.IndexFunc(mounts, func(other rspec.Mount) bool {
		return path.Clean(other.Destination) != m.Destination && bundlegen.Covered([]rspec.Mount{m}, other.Destination)
	})
	if i < 0 {
		i = len(mounts)
	}
	return slices.Insert(mounts, i, m)
}

// complete finishes the spec of a container whose root file system is at rootfs.
//
// An image's volume has the image's content, whatever CRI-O's image_volumes is: with
// "mkdir" and "ignore" it is in the root file system; with "bind" CRI-O mounts an empty
// directory of the host's, made in place of layers that it does not have, and the
// volume's own directory takes its place. It can be written to where the rest of the root
// file system cannot, as CRI-O's, and what the container writes stays in the pod's store.
func (s *store) complete(id, bundle, rootfs string, spec *rspec.Spec, user bundlegen.User, volumes []string) (bundlegen.Identity, error) {
	ours := func(m rspec.Mount) bool {
		return filepath.Dir(m.Source) == filepath.Join(bundle, crioVolumes) && slices.ContainsFunc(volumes, func(v string) bool {
			return path.Join("/", v) == path.Join("/", m.Destination)
		})
	}
	all := spec.Mounts
	spec.Mounts = slices.DeleteFunc(slices.Clone(all), ours)
	identity, err := bundlegen.Complete(spec, rootfs, user, volumes)
	if err != nil {
		return bundlegen.Identity{}, err
	}
	others := spec.Mounts
	spec.Mounts = nil
	for i, m := range all {
		if ours(m) {
			if bundlegen.Covered(others, m.Destination) {
				continue // it lies in what the pod mounts there
			}
			if m.Source, err = s.mountVolume(id, i, rootfs, m.Destination); err != nil {
				return bundlegen.Identity{}, err
			}
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	return identity, nil
}
