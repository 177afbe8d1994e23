package front

import (
	"context"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/status"
)

// imageStatus answers three kinds of question (DESIGN section 4, "Presence, and
// the user trap"). One that names a guest-pull handler gets the records. Others
// get CRI-O's answer. Where CRI-O has no image, a question for the image's user
// (neither annotations nor handler) and one by image ID get the record; a
// presence check does not, so that no ordinary pod takes a layer-less image for one it
// can start from.
func (s *Server) imageStatus(c *call) error {
	req := new(cri.ImageStatusRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	spec := req.GetImage()
	c.note("image", spec.GetImage())
	if spec.GetImage() == "" {
		return c.passOn()
	}
	h, explicit, err := s.viewer(spec)
	if err != nil {
		return err
	}
	if explicit && h.GuestPull {
		return s.statusForPod(c, req, h)
	}
	return s.statusOfAll(c, req, explicit)
}

// statusForPod answers a question that names a guest-pull handler, for the pod that asks.
func (s *Server) statusForPod(c *call, req *cri.ImageStatusRequest, h Handler) error {
	q, err := s.query(c.ctx(), req.GetImage().GetImage())
	if err != nil {
		return err
	}
	records, err := s.Records.List(c.ctx())
	if err != nil {
		return err
	}
	found := imageref.Resolve(records, q)
	lacking, err := s.lacking(c.ctx(), h, req.GetImage(), q, found.Records)
	if err != nil {
		return err
	}
	if lacking {
		found.Records = nil
	}
	return answerRecord(c, req, h.Name, found)
}

// statusOfAll answers a question that names no guest-pull handler. explicit says that it
// names an ordinary one.
func (s *Server) statusOfAll(c *call, req *cri.ImageStatusRequest, explicit bool) error {
	spec := req.GetImage()
	raw, err := c.relay(c.request)
	unknownID := err != nil && s.noSuchID(c.ctx(), spec.GetImage(), err)
	if err != nil && !unknownID {
		return err
	}
	if theirs, err := s.isOrdinary(c.ctx(), raw); err != nil {
		return err
	} else if theirs {
		return c.send(raw)
	}
	byID := !imageref.NewQuery(spec.GetImage(), nil).ID.IsZero()
	hidden := explicit || (len(spec.GetAnnotations()) > 0 && !byID)
	if hidden && !unknownID {
		return c.answer(new(cri.ImageStatusResponse))
	}
	found, findErr := s.find(c.ctx(), spec.GetImage(), imageref.Resolve)
	switch {
	case unknownID && (findErr != nil || len(found.Records) == 0):
		return err // CRI-O's own words on an ID that no record has either
	case hidden:
		return c.answer(new(cri.ImageStatusResponse))
	case findErr != nil:
		return findErr
	}
	return answerRecord(c, req, s.shownHandler(), found)
}

// isOrdinary reports whether CRI-O's answer to an ImageStatus is its own affair: an
// image with layers, or what cannot be read.
func (s *Server) isOrdinary(ctx context.Context, raw []byte) (bool, error) {
	answer := new(cri.ImageStatusResponse)
	if err := proto.Unmarshal(raw, answer); err != nil {
		return true, nil //nolint:nilerr // not the front's to judge
	}
	if answer.GetImage() == nil {
		return false, nil
	}
	rec, err := s.recordByStorageID(ctx, answer.GetImage().GetId())
	return rec == nil, err
}

// answerRecord answers with the first of the records, or with no image.
func answerRecord(c *call, req *cri.ImageStatusRequest, handler string, found imageref.Match) error {
	if len(found.Records) == 0 {
		return c.answer(new(cri.ImageStatusResponse))
	}
	answer, err := status.ImageStatus(found.Records[0], handler, req.GetVerbose())
	if err != nil {
		return err
	}
	return c.answer(answer)
}

// shownHandler is the handler reported with a record when the client named none:
// the first guest-pull handler. A record serves them all.
func (s *Server) shownHandler() string {
	if names := s.live.Load().Handlers.GuestPull(); len(names) > 0 {
		return names[0]
	}
	return ""
}

// listImages is CRI-O's list without what it shows for records, and with the
// true images instead.
func (s *Server) listImages(c *call) error {
	req := new(cri.ListImagesRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	view, err := s.listing(c.ctx(), req.GetFilter().GetImage())
	if err != nil {
		return err
	}
	var raw []byte
	if !view.recordsOnly {
		if raw, err = c.relay(c.request); err != nil {
			return err
		}
	}
	edited, err := view.edit(raw)
	if err != nil {
		return err
	}
	return c.send(edited)
}

// streamImages is listImages for the streaming twin: the true images go with the
// first message, or alone when CRI-O has none.
func (s *Server) streamImages(c *call) error {
	req := new(cri.StreamImagesRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	view, err := s.listing(c.ctx(), req.GetFilter().GetImage())
	if err != nil {
		return err
	}
	if view.recordsOnly {
		if len(view.entries) == 0 {
			return nil
		}
		edited, err := view.edit(nil)
		if err != nil {
			return err
		}
		return c.send(edited)
	}
	return c.edited(func(message []byte) ([]byte, error) {
		if message == nil && len(view.entries) == 0 {
			return nil, nil
		}
		edited, err := view.edit(message)
		view.entries = nil
		if len(edited) == 0 {
			return nil, err // CRI: at least one image in each message
		}
		return edited, err
	})
}

// listing is what one ListImages or StreamImages call shows of the records.
type listing struct {
	entries     []*cri.Image
	hidden      map[string]bool // storage IDs
	recordsOnly bool
}

// listing decides what a list with the given filter shows.
func (s *Server) listing(ctx context.Context, filter *cri.ImageSpec) (listing, error) {
	h, explicit, err := s.viewer(filter)
	if err != nil {
		return listing{}, err
	}
	records, err := s.Records.List(ctx)
	if err != nil {
		return listing{}, err
	}
	view := listing{hidden: make(map[string]bool, len(records)), recordsOnly: explicit && h.GuestPull}
	for _, rec := range records {
		view.hidden[rec.StorageID.String()] = true
	}
	if explicit && !h.GuestPull {
		return view, nil
	}
	if name := filter.GetImage(); name != "" {
		q, err := s.query(ctx, name)
		if err != nil {
			return listing{}, err
		}
		records = imageref.Resolve(records, q).Records
	}
	shown := s.shownHandler()
	if explicit {
		shown = h.Name
	}
	for _, rec := range records {
		view.entries = append(view.entries, status.Image(rec, shown))
	}
	return view, nil
}

// edit makes one message of the list true.
func (v listing) edit(message []byte) ([]byte, error) {
	return status.MergeImages(message, v.entries, v.hidden)
}
