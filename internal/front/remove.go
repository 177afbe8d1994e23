package front

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/status"
)

// removeImage removes by image ID everything of that ID, CRI-O's image included,
// because kubelet never names a handler here. A reference means CRI-O's image
// where it has one, else the record's reference; with a handler, that handler's
// alone. A record in use is refused.
func (s *Server) removeImage(c *call) error {
	req := new(cri.RemoveImageRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	name := req.GetImage().GetImage()
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
	q, err := s.query(c.ctx(), name)
	if err != nil {
		return err
	}
	if !explicit && len(q.Candidates) > 0 {
		held, err := s.heldByCRIO(c.ctx(), name)
		if err != nil || held {
			return s.passUnless(c, err)
		}
	}
	if err := s.removeRecords(c.ctx(), q); err != nil {
		return err
	}
	if explicit {
		return s.done(c, nil)
	}
	return c.passOn() // idempotent in CRI-O
}

// done answers that the image is gone.
func (s *Server) done(c *call, err error) error {
	if err != nil {
		return err
	}
	return c.answer(new(cri.RemoveImageResponse))
}

func (s *Server) passUnless(c *call, err error) error {
	if err != nil {
		return err
	}
	return c.passOn()
}

// heldByCRIO reports whether CRI-O has an ordinary image by the name.
func (s *Server) heldByCRIO(ctx context.Context, name string) (bool, error) {
	answer := new(cri.ImageStatusResponse)
	request := &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}}
	if err := s.ask(ctx, cri.ImageService_ImageStatus_FullMethodName, request, answer); err != nil {
		return false, err
	}
	if answer.GetImage() == nil {
		return false, nil
	}
	rec, err := s.recordByStorageID(ctx, answer.GetImage().GetId())
	return rec == nil, err
}

// removeRecords removes what the query names: one reference of a record, or all
// records of an ID. What is gone already is no error.
func (s *Server) removeRecords(ctx context.Context, q status.Query) error {
	records, err := s.Records.List(ctx)
	if err != nil {
		return err
	}
	for _, ref := range q.Candidates {
		byRef := status.Query{Candidates: []imageref.Reference{ref}}
		if len(status.Resolve(records, byRef)) > 0 {
			return ignoreGone(s.Records.RemoveReference(ctx, ref))
		}
	}
	found := status.Resolve(records, q)
	if rec, err := s.recordByStorageID(ctx, q.Text); err != nil {
		return err
	} else if rec != nil {
		found = append(found, *rec)
	}
	for _, rec := range found {
		if err := ignoreGone(s.Records.Remove(ctx, rec.StorageID)); err != nil {
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
