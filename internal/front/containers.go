package front

import (
	"context"

	"github.com/husk-cri/husk/status"
)

// editor makes one encoded answer true; it returns its argument when there is
// nothing to change.
type editor func(answer []byte, view status.View) ([]byte, error)

// reportOne answers a unary call that reports containers.
func (s *Server) reportOne(edit editor) func(*call) error {
	return func(c *call) error {
		answer, err := c.relay(c.request)
		if err != nil {
			return err
		}
		if answer, err = edit(answer, s.view(c.ctx())); err != nil {
			return err
		}
		return c.send(answer)
	}
}

// listContainers is asked for every second on every node. A list without guest-pull
// containers is passed on as it came, without so much as a copy.
func (s *Server) listContainers(c *call) error {
	answer, err := c.forward(c.request)
	if err != nil {
		return err
	}
	if !answer.Contains(status.RecordMark()) {
		return c.stream.SendMsg(answer)
	}
	edited, err := status.EditContainers(answer.Bytes(), status.View{Handler: s.shownHandler()})
	if err != nil {
		return err
	}
	return c.send(edited)
}

// reportMany answers a streaming call that reports containers.
func (s *Server) reportMany(edit editor) func(*call) error {
	return func(c *call) error {
		return c.edited(func(message []byte) ([]byte, error) {
			if message == nil {
				return nil, nil
			}
			return edit(message, s.view(c.ctx())) // the handlers may change meanwhile
		})
	}
}

// view is how clients see containers made from records.
func (s *Server) view(ctx context.Context) status.View {
	return status.View{Handler: s.shownHandler(), Find: s.origins(ctx)}
}

// origins finds the record of a container that was made from it behind the
// front's back. CRI-O reports such a container without an image name, which
// clients reject; no other container needs a look into the store.
func (s *Server) origins(ctx context.Context) status.Finder {
	return func(storageID string) (status.Origin, bool, error) {
		rec, err := s.recordByStorageID(ctx, storageID)
		if err != nil || rec == nil {
			return status.Origin{}, false, err
		}
		return status.FromRecord(*rec), true, nil
	}
}
