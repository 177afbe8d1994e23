package layerpull

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/registryerr"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// kindOf returns the kind of a pull's error. When the caller's context has
// ended, that is the reason, whatever broke because of it.
func kindOf(ctx context.Context, err error) errdefs.Kind {
	if ctx.Err() != nil {
		return errdefs.KindOf(ctx.Err())
	}
	return errdefs.KindOf(err)
}

// requestError gives an error of a request to a registry its kind: what is not
// known is a fault of this machine, such as an auth file that cannot be read.
func requestError(op string, err error) error {
	return errdefs.New(registryerr.Kind(err), op, registryerr.ScrubHelper(err))
}

// registryError gives an error of a blob's stream its kind. The registry has
// answered by then: what is not known is a stream that broke.
func registryError(op string, err error) error {
	return errdefs.New(registryKind(err), op, registryerr.ScrubHelper(err))
}

func registryKind(err error) errdefs.Kind {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errdefs.KindOf(err)
	}
	var known *errdefs.Error
	if kind := registryerr.Kind(err); kind != errdefs.Internal || errors.As(err, &known) {
		return kind
	}
	return errdefs.RegistryUnavailable
}

// contentError gives an error met while a layer was decoded and unpacked its
// kind: the store is full, the node is at fault, or the layer is malformed.
func contentError(err error) error {
	var known *errdefs.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, errno := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EPERM, unix.EACCES, unix.ENOMEM, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, errno) {
			return storeError("unpack", err)
		}
	}
	return errdefs.New(errdefs.NotAnImage, "unpack malformed layer", err)
}
