package bundles

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containers/storage"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// template returns the template of a container.
func (s *Store) template(ctx context.Context, op, id string) (*rspec.Spec, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	rec, err := s.find(op, id)
	if err != nil {
		return nil, err
	}
	data, err := s.readTemplate(rec)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	var spec rspec.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, errdefs.New(errdefs.Internal, op, fmt.Errorf("%w: its template: %w", ErrDamaged, err))
	}
	return &spec, nil
}

// readTemplate returns the template if it is what its record says, to the byte.
func (s *Store) readTemplate(rec *storage.Container) (data []byte, err error) {
	st, err := decode(rec)
	if err != nil {
		return nil, err
	}
	dir, err := s.store.ContainerDirectory(rec.ID)
	if err != nil {
		return nil, fmt.Errorf("containers/storage: %w", err)
	}
	// Nothing but a file is opened: neither what a link leads to nor a FIFO that hangs.
	file, err := os.OpenFile(filepath.Join(dir, templateName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: its template: %w", ErrDamaged, err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() != st.TemplateSize {
		return nil, fmt.Errorf("%w: its template has %d bytes, not %d", ErrDamaged, info.Size(), st.TemplateSize)
	}
	data, err = io.ReadAll(io.LimitReader(file, st.TemplateSize+1))
	if err != nil {
		return nil, err
	}
	if got := st.Template.Algorithm().FromBytes(data); got != st.Template {
		return nil, fmt.Errorf("%w: its template is %s, not %s", ErrDamaged, got, st.Template)
	}
	return data, nil
}
