package layerpull

import (
	"context"
	"io"
)

// opener turns a layer's blob into its plain form.
type opener func(io.Reader) (io.Reader, error)

// opener returns how to open the layer, and what forgets its key. For an encrypted
// layer it unwraps the key, without a request to the registry.
func (p *puller) opener(ctx context.Context, l layer) (opener, func(), error) {
	if !l.encrypted() {
		return func(r io.Reader) (io.Reader, error) { return r, nil }, func() {}, nil
	}
	key, err := p.keys.Unwrap(ctx, l.annotations)
	if err != nil {
		return nil, nil, err
	}
	return key.Open, key.Wipe, nil
}
