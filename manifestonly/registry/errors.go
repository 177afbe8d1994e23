package registry

import (
	"context"
	"errors"

	"github.com/husk-cri/husk/internal/registryerr"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// target is what an error names, and the secrets that it must not.
type target struct {
	ref         imageref.Reference
	credentials registryauth.Credentials
}

// fail returns an error of the given kind about the target.
func (t target) fail(kind errdefs.Kind, doing string, err error) error {
	op := doing + " " + t.ref.String() + " from registry " + t.ref.Registry()
	return errdefs.New(kind, op, registryerr.ScrubHelper(t.credentials.Scrub(err)))
}

// mapped returns an error of containers/image with its kind.
func (t target) mapped(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		// What the library says of a broken-off request is noise; why it was
		// broken off is the reason.
		return t.fail(errdefs.KindOf(ctx.Err()), doing, ctx.Err())
	}
	var why *cut
	if errors.As(err, &why) {
		return t.fail(why.kind, doing, why)
	}
	return t.fail(registryerr.Kind(err), doing, err)
}
