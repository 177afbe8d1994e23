package front

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// removeImage removes by image ID everything of that ID, CRI-O's image included,
// because kubelet never names a handler here. A reference means CRI-O's image
// where it has one, else the record's reference; with a handler, that handler's
// alone. What is in use is refused, and then nothing has been removed.
func (s *Server) removeImage(c *call) error {
	req := new(cri.RemoveImageRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	name := req.GetImage().GetImage()
	c.note("image", name)
	if name == "" {
		return c.passOn()
	}
	h, explicit, err := s.viewer(req.GetImage())
	if err != nil {
		return err
	}
	if explicit && !h.GuestPull {
		if rec, err := s.recordByStorageID(c.ctx(), name); err != nil || rec != nil {
			return s.done(c, err)
		}
		return c.passOn()
	}
	named, err := s.find(c.ctx(), name, imageref.ResolveStored)
	if err != nil {
		return err
	}
	if explicit {
		return s.done(c, s.removeNamed(c, named))
	}
	if len(named.Records) == 0 {
		return c.passOn() // idempotent in CRI-O
	}
	image, err := s.ordinaryImage(c.ctx(), name)
	if err != nil {
		return err
	}
	switch {
	case image == nil:
		return s.done(c, s.removeNamed(c, named))
	case !named.By.IsZero(), image.GetId() != named.Records[0].ImageID().String():
		return c.passOn() // the name means CRI-O's
	default:
		return s.removeBoth(c, named)
	}
}

// removeBoth removes an image ID from CRI-O and its records. CRI-O refuses what it
// uses, so it goes first, and what uses the records is asked for before that. Only a
// container that is made of a record in between leaves half of it done: CRI-O's image is
// gone, the record and its container stay, and the answer says in use.
func (s *Server) removeBoth(c *call, named imageref.Match) error {
	if err := s.refuseUsed(c.ctx(), named.Records); err != nil {
		return err
	}
	answer, err := c.relay(c.request)
	if err != nil {
		return err
	}
	if err := s.remove(c, named); err != nil {
		return err
	}
	return c.send(answer)
}

// refuseUsed refuses records that a container of CRI-O was made from.
func (s *Server) refuseUsed(ctx context.Context, records []imageref.Record) error {
	list := new(cri.ListContainersResponse)
	if err := s.ask(ctx, cri.RuntimeService_ListContainers_FullMethodName, new(cri.ListContainersRequest), list); err != nil {
		return err
	}
	for _, container := range list.GetContainers() {
		for _, rec := range records {
			if id := rec.StorageID.String(); container.GetImageId() == id || container.GetImageRef() == id {
				return errdefs.Newf(errdefs.InUse, "remove image "+rec.ImageID().String(), "container %s was made from it", container.GetId())
			}
		}
	}
	return nil
}

// done answers that the image is gone.
func (s *Server) done(c *call, err error) error {
	if err != nil {
		return err
	}
	return c.answer(new(cri.RemoveImageResponse))
}

// removeNamed removes one reference, or the records of an ID: all of them or, when one
// is in use, none.
func (s *Server) removeNamed(c *call, what imageref.Match) error {
	if what.By.IsZero() && len(what.Records) > 1 {
		if err := s.refuseUsed(c.ctx(), what.Records); err != nil {
			return err
		}
	}
	return s.remove(c, what)
}

// remove removes one reference, or the records of an ID. What is gone already is no
// error.
func (s *Server) remove(c *call, what imageref.Match) error {
	if !what.By.IsZero() {
		c.did = "removed an image reference"
		return ignoreGone(s.Records.RemoveReference(c.ctx(), what.By))
	}
	for _, rec := range what.Records {
		c.did = "removed image metadata"
		if err := ignoreGone(s.Records.Remove(c.ctx(), rec.StorageID)); err != nil {
			return err
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	return err
}
