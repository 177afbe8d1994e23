package front

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// createContainer turns a request for a guest-pull sandbox into one that stock
// CRI-O can carry out from a layer-less record. Other requests are forwarded byte
// for byte.
func (s *Server) createContainer(c *call) error {
	req := new(cri.CreateContainerRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	if err := refuseForged(req.GetConfig()); err != nil {
		return err
	}
	if len(s.Handlers.GuestPull()) == 0 || req.GetPodSandboxId() == "" {
		return c.passOn()
	}
	h, err := s.sandboxHandler(c.ctx(), req.GetPodSandboxId())
	if err != nil {
		return err
	}
	if !h.GuestPull {
		if err := s.refuseRecord(c.ctx(), req.GetConfig().GetImage().GetImage()); err != nil {
			return err
		}
		return c.passOn()
	}
	if err := s.rewrite(c.ctx(), h, req); err != nil {
		return err
	}
	request, err := proto.Marshal(req)
	if err != nil {
		return errdefs.New(errdefs.Internal, "encode "+c.method, err)
	}
	answer, err := c.relay(request)
	if err != nil {
		return err
	}
	return c.send(answer)
}

// restorePod leaves restoring to CRI-O where the image is CRI-O's. A restored
// guest-pull pod would need its layers pulled for an image that this call only
// names inside the checkpoint; that is refused rather than half done.
func (s *Server) restorePod(c *call) error {
	req := new(cri.RestorePodRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	for _, config := range req.GetContainerConfigs() {
		if err := refuseForged(config); err != nil {
			return err
		}
	}
	if len(s.Handlers.GuestPull()) == 0 {
		return c.passOn()
	}
	h, err := s.orDefault(req.GetRuntimeHandler())
	if err != nil {
		return err
	}
	if h.GuestPull {
		return errdefs.Newf(errdefs.Unsupported, "restore pod", "runtime handler %q pulls images in the guest", h.Name)
	}
	return c.passOn()
}

// refuseForged refuses annotations that the shim and the status trust, because
// only the front writes them. CRI-O copies labels into the spec after the
// annotations, so a label would win over what the front writes.
func refuseForged(config *cri.ContainerConfig) error {
	for key := range config.GetAnnotations() {
		if strings.HasPrefix(key, annotations.Prefix) && key != annotations.RuntimeHandler {
			return errdefs.Newf(errdefs.InvalidArgument, "create container", "annotation %s is reserved", key)
		}
	}
	for key := range config.GetLabels() {
		if strings.HasPrefix(key, annotations.Prefix) || key == annotations.CRIOImageName {
			return errdefs.Newf(errdefs.InvalidArgument, "create container", "label %s is reserved", key)
		}
	}
	return nil
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
	return errdefs.Newf(errdefs.NotFound, "create container",
		"image %s has no layers on this node; it serves guest-pull runtime handlers only", name)
}

// recordByStorageID returns the record that is stored under the name; nil when
// there is none, or name is no storage ID.
func (s *Server) recordByStorageID(ctx context.Context, name string) (*imageref.Record, error) {
	if id, err := imageref.ParseStorageID(name); err == nil {
		rec, err := s.Records.Get(ctx, id)
		if err == nil {
			return &rec, nil
		}
		if !errdefs.Is(err, errdefs.NotFound) {
			return nil, err
		}
	}
	return nil, nil
}

// rewrite changes req so that CRI-O creates the container from a record.
func (s *Server) rewrite(ctx context.Context, h Handler, req *cri.CreateContainerRequest) error {
	config := req.GetConfig()
	if config.GetImage().GetImage() == "" {
		return errdefs.Newf(errdefs.InvalidArgument, "create container", "no image specified")
	}
	records, err := s.Records.List(ctx)
	if err != nil {
		return err
	}
	rec, pulled, err := s.choose(ctx, h, records, config.GetImage())
	if err != nil {
		return err
	}
	wanted, err := s.request(ctx, records, rec, config)
	if err != nil {
		return err
	}
	changes, err := bundlegen.Rewrite(rec, pulled, wanted, bundlegen.RewriteOptions{ResolvesNames: h.ResolvesNames, KeepTag: h.KeepTag})
	if err != nil {
		return err
	}
	apply(changes, config)
	s.Log.Info("create container from image metadata", "sandbox", req.GetPodSandboxId(), "handler", h.Name,
		"container", config.GetMetadata().GetName(), "image", pulled.Pinned().String(), "record", rec.StorageID.String())
	return nil
}

// choose finds the record a container is to be made from. Not to find one is an
// error: forwarding would have CRI-O use an image with layers, or none.
func (s *Server) choose(ctx context.Context, h Handler, records []imageref.Record, spec *cri.ImageSpec) (imageref.Record, imageref.PulledReference, error) {
	q, err := s.query(ctx, spec.GetImage())
	if err != nil {
		return imageref.Record{}, imageref.PulledReference{}, err
	}
	found := imageref.Resolve(records, q).Records
	if len(found) == 0 {
		rec, err := s.recordByStorageID(ctx, spec.GetImage())
		if err != nil {
			return imageref.Record{}, imageref.PulledReference{}, err
		}
		if rec == nil {
			return s.derive(ctx, h, spec)
		}
		found = []imageref.Record{*rec}
	}
	refs := q.Candidates
	if user := spec.GetUserSpecifiedImage(); user != "" {
		asked, err := s.query(ctx, user)
		if err != nil {
			return imageref.Record{}, imageref.PulledReference{}, err
		}
		refs = append(refs, asked.Candidates...)
	}
	rec, pulled := imageref.Choose(found, refs)
	if pulled.Reference.IsZero() {
		return rec, pulled, errdefs.Newf(errdefs.NotFound, "create container", "the record of image %s has no reference", spec.GetImage())
	}
	return rec, pulled, nil
}

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

// query parses an image name of a request.
func (s *Server) query(ctx context.Context, name string) (imageref.Query, error) {
	q := imageref.NewQuery(name, nil)
	if !q.ID.IsZero() {
		return q, nil
	}
	candidates, err := s.Names.Resolve(ctx, name)
	if err != nil && !q.IsIDPrefix() {
		return imageref.Query{}, err
	}
	return imageref.NewQuery(name, candidates), nil
}

// apply writes the changes into the container config.
func apply(changes bundlegen.Changes, config *cri.ContainerConfig) {
	config.Image.Image = changes.Image.String()
	config.Image.UserSpecifiedImage = changes.UserSpecifiedImage.String()
	if config.Annotations == nil {
		config.Annotations = map[string]string{}
	}
	for key, value := range changes.Annotations {
		config.Annotations[key] = value
	}
	if config.Linux == nil {
		config.Linux = new(cri.LinuxContainerConfig)
	}
	if config.Linux.SecurityContext == nil {
		// CRI-O's own defaults for a request without one: the runtime's profiles.
		config.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{
			Seccomp:  new(cri.SecurityProfile),
			Apparmor: new(cri.SecurityProfile),
		}
	}
	security := config.Linux.SecurityContext
	security.RunAsUser = &cri.Int64Value{Value: changes.RunAsUser}
	security.RunAsUsername = ""
	security.RunAsGroup = nil
	if changes.RunAsGroup != nil {
		security.RunAsGroup = &cri.Int64Value{Value: *changes.RunAsGroup}
	}
}
