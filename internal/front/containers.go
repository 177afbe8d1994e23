package front

import (
	"context"

	"github.com/husk-cri/husk/status"
)

// editor makes one encoded answer true; it returns its argument when there is
// nothing to change.
type editor func(answer []byte, find status.Finder) ([]byte, error)

// reportOne answers a unary call that reports containers.
func (s *Server) reportOne(edit editor) func(*call) error {
	return func(c *call) error {
		answer, err := c.relay(c.request)
		if err != nil {
			return err
		}
		if answer, err = edit(answer, s.origins(c.ctx())); err != nil {
			return err
		}
		return c.send(answer)
	}
}

// listContainers is asked for every second on every node. A list without guest-pull
// containers is passed on as it came, without so much as a copy.
func (s *Server) listContainers(c *call) error {
	answer, err := c.backend.Relay(c.stream, c.method, c.request)
	if err != nil {
		return err
	}
	if !answer.Contains(status.RecordMark()) {
		return c.stream.SendMsg(answer)
	}
	edited, err := status.EditContainers(answer.Bytes())
	if err != nil {
		return err
	}
	return c.send(edited)
}

// reportMany answers a streaming call that reports containers.
func (s *Server) reportMany(edit editor) func(*call) error {
	return func(c *call) error {
		find := s.origins(c.ctx())
		return s.backend.ForwardEdited(c.stream, c.request, func(message []byte) ([]byte, error) {
			if message == nil {
				return nil, nil
			}
			return edit(message, find)
		})
	}
}

// editContainers never looks into the store: lists are asked for every second.
func editContainers(answer []byte, _ status.Finder) ([]byte, error) {
	return status.EditContainers(answer)
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
