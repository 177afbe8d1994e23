package front

import (
	"context"
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
	config := req.GetConfig()
	c.notePod(req.GetSandboxConfig())
	c.note("container", config.GetMetadata().GetName())
	c.note("image", config.GetImage().GetUserSpecifiedImage())
	if err := refuseForged(config, huskOnly); err != nil {
		return err
	}
	now := s.live.Load()
	possible, err := s.guestPulls(c.ctx(), now)
	if err != nil {
		return err
	}
	if !possible || req.GetPodSandboxId() == "" {
		return s.createOrdinary(c, config)
	}
	p, err := s.podByID(c.ctx(), now, req.GetPodSandboxId())
	if err != nil {
		return err
	}
	c.note("sandbox", req.GetPodSandboxId())
	c.note("handler", p.handler.Name)
	if !p.handler.GuestPull {
		return s.createOrdinary(c, config)
	}
	c.did = "created container from image metadata"
	if err := refuseForged(config, annotations.Reserved); err != nil {
		return err
	}
	if err := s.rewrite(c, p.handler, config); err != nil {
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

// createOrdinary passes on a container that is no guest-pull one, unless it would
// start from, or mount, an image without layers.
func (s *Server) createOrdinary(c *call, config *cri.ContainerConfig) error {
	if err := s.refuseRecord(c.ctx(), config.GetImage().GetImage()); err != nil {
		return err
	}
	if err := s.refuseRecordVolumes(c.ctx(), config.GetMounts()); err != nil {
		return err
	}
	return c.passOn()
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
		if err := refuseForged(config, huskOnly); err != nil {
			return err
		}
	}
	now := s.live.Load()
	if len(now.Handlers.GuestPull()) == 0 {
		return c.passOn()
	}
	h, err := now.orDefault(req.GetRuntimeHandler())
	if err != nil {
		return err
	}
	c.note("handler", h.Name)
	if h.GuestPull {
		return errdefs.Newf(errdefs.Unsupported, "restore pod", "runtime handler %q pulls images in the guest", h.Name)
	}
	return c.passOn()
}

// refuseForged refuses a container that says of itself what only the front or CRI-O
// may say, and what the shim and the status believe.
func refuseForged(config *cri.ContainerConfig, reserved func(string) bool) error {
	op := "create container " + config.GetMetadata().GetName()
	return refuseKeys(op, "a container", reserved, config.GetAnnotations(), config.GetLabels())
}

// huskOnly selects the keys that are refused even for ordinary containers, because
// the status of every container is read for them.
func huskOnly(key string) bool {
	return strings.HasPrefix(key, annotations.Prefix) && annotations.Reserved(key)
}

// rewrite changes config so that CRI-O creates the container from a record.
func (s *Server) rewrite(c *call, h Handler, config *cri.ContainerConfig) error {
	if config.GetImage().GetImage() == "" {
		return errdefs.Newf(errdefs.InvalidArgument, "create container", "no image specified")
	}
	ctx := c.ctx()
	records, err := s.Records.List(ctx)
	if err != nil {
		return err
	}
	rec, pulled, err := s.choose(ctx, h, records, config.GetImage())
	if err != nil {
		return err
	}
	c.noteImage(rec, pulled)
	if err := admit(h, rec); err != nil {
		return err
	}
	wanted, err := s.request(ctx, records, rec, config)
	if err != nil {
		return err
	}
	if err := refuseContainerUser(h, rec, pulled, wanted); err != nil {
		return err
	}
	mounts, err := s.imageMounts(ctx, h, records, config)
	if err != nil {
		return err
	}
	changes, err := bundlegen.Rewrite(rec, pulled, wanted, bundlegen.RewriteOptions{ResolvesNames: h.ResolvesNames, KeepTag: h.KeepTag})
	if err != nil {
		return err
	}
	apply(changes, config)
	return giveMounts(mounts, config)
}

// choose finds the record a container is to be made from. Not to find one is an
// error: forwarding would have CRI-O use an image with layers, or none.
func (s *Server) choose(ctx context.Context, h Handler, records []imageref.Record, spec *cri.ImageSpec) (imageref.Record, imageref.PulledReference, error) {
	q, err := s.query(ctx, spec.GetImage())
	if err != nil {
		return imageref.Record{}, imageref.PulledReference{}, err
	}
	// A node operator may name the very record.
	found := imageref.ResolveStored(records, q).Records
	if len(found) == 0 {
		return s.derive(ctx, h, spec)
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
