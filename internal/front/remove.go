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
	named, err := s.named(c.ctx(), name)
	if err != nil {
		return err
	}
	if !explicit && !named.By.IsZero() {
		if image, err := s.ordinaryImage(c.ctx(), name); err != nil {
			return err
		} else if image != nil {
			return c.passOn()
		}
	}
	if err := s.remove(c.ctx(), named); err != nil || explicit {
		return s.done(c, err)
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

// named returns what a name to be removed stands for; a storage ID is one too.
func (s *Server) named(ctx context.Context, name string) (imageref.Match, error) {
	rec, err := s.recordByStorageID(ctx, name)
	if err != nil {
		return imageref.Match{}, err
	}
	if rec != nil {
		return imageref.Match{Records: []imageref.Record{*rec}}, nil
	}
	return s.find(ctx, name)
}

// remove removes one reference, or the records of an ID. What is gone already is
// no error.
func (s *Server) remove(ctx context.Context, what imageref.Match) error {
	if !what.By.IsZero() {
		return ignoreGone(s.Records.RemoveReference(ctx, what.By))
	}
	for _, rec := range what.Records {
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
