package front

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/status"
)

// resolveImage says of every image of the node that a name stands for what the CRI
// cannot say, in the order in which imageStatus prefers them: CRI-O's own, then the
// records, best first. With a runtime handler it is that handler's view.
func (s *Server) resolveImage(c *call) error {
	req := new(huskv1.ResolveImageRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	name, handler := req.GetImage(), req.GetRuntimeHandler()
	c.note("image", name)
	c.note("handler", handler)
	op := "resolve image " + name
	if name == "" {
		return errdefs.Newf(errdefs.InvalidArgument, op, "no image specified")
	}
	now := s.live.Load()
	h, err := now.orDefault(handler)
	if handler != "" && err != nil {
		return err
	}
	q, err := s.query(c.ctx(), name)
	if err != nil {
		return err
	}
	answer := new(huskv1.ResolveImageResponse)
	if handler == "" || !h.GuestPull {
		held, err := s.askStatus(c.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}, Verbose: true})
		if err != nil {
			return err
		}
		rec, err := s.recordByStorageID(c.ctx(), held.GetImage().GetId())
		if err != nil {
			return err
		}
		if held.GetImage() != nil && rec == nil {
			answer.Images = append(answer.Images, status.ResolvedImage(held))
		}
	}
	if handler == "" || h.GuestPull {
		records, err := s.Records.List(c.ctx())
		if err != nil {
			return err
		}
		for _, rec := range imageref.Resolve(records, q).Records {
			answer.Images = append(answer.Images, status.ResolvedRecord(rec, now.Handlers.GuestPull()))
		}
	}
	if len(answer.Images) == 0 {
		return errdefs.Newf(errdefs.NotFound, op, "this node has no image by that name%s", forHandler(handler))
	}
	return c.answer(answer)
}

func forHandler(name string) string {
	if name == "" {
		return ""
	}
	return " for runtime handler " + name
}
