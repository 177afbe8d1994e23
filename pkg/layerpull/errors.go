package layerpull

import (
	"context"
	"errors"
	"net/http"

	"github.com/containers/image/v5/docker"
	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"golang.org/x/sys/unix"

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

// registryError gives an error of containers/image's registry client its kind.
func registryError(op string, err error) error {
	return errdefs.New(registryKind(err), op, err)
}

func registryKind(err error) errdefs.Kind {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errdefs.KindOf(err)
	}
	var known *errdefs.Error
	if errors.As(err, &known) {
		return known.Kind()
	}
	var unauthorized docker.ErrUnauthorizedForCredentials
	if errors.As(err, &unauthorized) {
		return errdefs.Unauthorized
	}
	var code errcode.ErrorCoder // errcode.Error and errcode.ErrorCode
	if errors.As(err, &code) {
		switch code.ErrorCode() {
		case errcode.ErrorCodeUnauthorized, errcode.ErrorCodeDenied:
			return errdefs.Unauthorized
		case v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown, v2.ErrorCodeBlobUnknown:
			return errdefs.NotFound
		}
	}
	var unexpected docker.UnexpectedHTTPStatusError
	if errors.As(err, &unexpected) {
		switch unexpected.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return errdefs.Unauthorized
		case http.StatusNotFound:
			return errdefs.NotFound
		}
	}
	// Everything else is a registry that cannot be reached, breaks off, asks to
	// wait, or answers what the protocol does not know.
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
