package front

import (
	"context"
	"errors"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// derive makes a record of an image that CRI-O holds in full: kubelet, which asks
// for presence without a handler, found it there and did not pull.
func (s *Server) derive(ctx context.Context, h Handler, spec *cri.ImageSpec) (imageref.Record, imageref.PulledReference, error) {
	missing := func(why error) (imageref.Record, imageref.PulledReference, error) {
		return imageref.Record{}, imageref.PulledReference{}, errdefs.Newf(errdefs.NotFound, "create container",
			"image %s (%s) was not pulled for runtime handler %q: pull it with imagePullPolicy Always: %w",
			spec.GetImage(), spec.GetUserSpecifiedImage(), h.Name, why)
	}
	image, err := s.askImage(ctx, spec.GetImage())
	if err != nil {
		return imageref.Record{}, imageref.PulledReference{}, err
	}
	id, err := imageref.ParseImageID(image.GetId())
	if err != nil {
		return missing(errors.New("nor does CRI-O hold it"))
	}
	names := []string{spec.GetUserSpecifiedImage()}
	if names[0] == "" || !imageref.NewQuery(names[0], nil).ID.IsZero() { // a pod may name an ID
		names = slices.Concat(image.GetRepoTags(), image.GetRepoDigests())
	}
	last := errors.New("it has no name")
	for _, name := range names {
		refs, err := s.Names.Resolve(ctx, name)
		if err != nil {
			return imageref.Record{}, imageref.PulledReference{}, err
		}
		for _, ref := range refs {
			result, err := s.Held.PullHeld(ctx, id, ref)
			if err == nil {
				return result.Record, result.Pulled, nil
			}
			if !errdefs.Is(err, errdefs.NotFound) {
				return imageref.Record{}, imageref.PulledReference{}, err
			}
			last = err
		}
	}
	return missing(last)
}

// noLayers is the error of an ordinary container that names a record.
func noLayers(name string) error {
	return errdefs.Newf(errdefs.NotFound, "create container",
		"image %s has no layers on this node; it serves guest-pull runtime handlers only", bounded(name))
}

// refuseRecord keeps ordinary containers from starting on an image without layers.
// CRI-O takes a prefix of an ID as well.
func (s *Server) refuseRecord(ctx context.Context, name string) error {
	id := name
	if q := imageref.NewQuery(name, nil); q.ID.IsZero() && q.IsIDPrefix() {
		held, err := s.askImage(ctx, name)
		if err != nil {
			return err
		}
		id = held.GetId()
	}
	rec, err := s.recordByStorageID(ctx, id)
	if err != nil || rec == nil {
		return err
	}
	return noLayers(name)
}

// refuseRecordVolumes keeps ordinary containers from mounting an image without
// layers: CRI-O would mount an empty folder for its ID, and say of its name that there
// is no such image, which a pod that sees it pulled cannot make sense of.
func (s *Server) refuseRecordVolumes(ctx context.Context, mounts []*cri.Mount) error {
	var names []string
	for _, mount := range mounts {
		if name := mount.GetImage().GetImage(); name != "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	records, err := s.Records.List(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		image, err := s.askImage(ctx, name)
		if err != nil {
			return err
		}
		hasID := func(rec imageref.Record) bool { return rec.StorageID.String() == image.GetId() }
		if slices.ContainsFunc(records, hasID) {
			return noLayers(name)
		}
		// What CRI-O does not hold may be an artifact. It has words of its own for what
		// is not there, and for a name it cannot read.
		q, err := s.query(ctx, name)
		if image == nil && err == nil && len(imageref.Resolve(records, q).Records) > 0 {
			return noLayers(name)
		}
	}
	return nil
}
