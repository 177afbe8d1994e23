package registry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/signature"
	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"

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
	return errdefs.New(kind, doing+" "+t.ref.String()+" from registry "+t.ref.Registry(), scrubHelper(t.credentials.Scrub(err)))
}

// helperOutput finds what a credential helper printed, in the text of the error
// that docker-credential-helpers makes of a helper that fails.
var helperOutput = regexp.MustCompile("(?s)(error (?:getting|listing) credentials - err: [^`]*out: `).*`")

// scrubHelper removes the output of a credential helper from an error: one that
// fails may have printed the secret before. The chain behind err stays.
func scrubHelper(err error) error {
	if err == nil || !helperOutput.MatchString(err.Error()) {
		return err
	}
	return &helperError{helperOutput.ReplaceAllString(err.Error(), "${1}REDACTED`"), err}
}

type helperError struct {
	text string
	err  error
}

func (h *helperError) Error() string { return h.text }
func (h *helperError) Unwrap() error { return h.err }

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
	return t.fail(kindOf(err), doing, err)
}

// kindOf finds the kind of an error by the types in its chain.
func kindOf(err error) errdefs.Kind {
	var (
		policy       signature.PolicyRequirementError
		invalid      signature.InvalidSignatureError
		unauthorized docker.ErrUnauthorizedForCredentials
		status       docker.UnexpectedHTTPStatusError
		coder        errcode.ErrorCoder
	)
	switch {
	case errors.As(err, &policy), errors.As(err, &invalid):
		return errdefs.PolicyRefused
	case errors.As(err, &unauthorized):
		return errdefs.Unauthorized
	case errors.Is(err, docker.ErrTooManyRequests):
		return errdefs.RegistryUnavailable
	case errors.As(err, &status):
		return kindOfStatus(status.StatusCode)
	case errors.As(err, &coder):
		if kind := kindOfCode(coder.ErrorCode()); kind != errdefs.Internal {
			return kind
		}
	}
	if kind, ok := kindOfText(err); ok {
		return kind
	}
	if isNetwork(err) || coder != nil {
		return errdefs.RegistryUnavailable
	}
	return errdefs.Internal
}

// kindOfStatus returns the kind of an HTTP status that is an error.
func kindOfStatus(code int) errdefs.Kind {
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return errdefs.Unauthorized
	case http.StatusNotFound:
		return errdefs.NotFound
	default:
		return errdefs.RegistryUnavailable
	}
}

// kindOfCode returns the kind of an error code of the distribution protocol;
// Internal for one that says nothing.
func kindOfCode(code errcode.ErrorCode) errdefs.Kind {
	switch code {
	case errcode.ErrorCodeUnauthorized, errcode.ErrorCodeDenied:
		return errdefs.Unauthorized
	case v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown, v2.ErrorCodeBlobUnknown, v2.ErrorCodeManifestBlobUnknown:
		return errdefs.NotFound
	case errcode.ErrorCodeTooManyRequests, errcode.ErrorCodeUnavailable:
		return errdefs.RegistryUnavailable
	default:
		return errdefs.Internal
	}
}

func isNetwork(err error) bool {
	var (
		urlError *url.Error
		netError net.Error
	)
	return errors.As(err, &urlError) || errors.As(err, &netError) || errors.Is(err, io.ErrUnexpectedEOF)
}

// statusPattern finds the HTTP status in the text of containers/image's
// unexpectedHTTPResponseError, a 4xx reply without a body it understands.
var statusPattern = regexp.MustCompile(`(?:^|: )StatusCode: ([45][0-9]{2}), "`)

// ofUpstream returns the part of an error that is about the registry in the name:
// containers/image puts the failures of the mirrors before it, as text, and these
// must not decide what kind of failure it is.
func ofUpstream(err error) error {
	for strings.Contains(err.Error(), "(Mirrors also failed: ") {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
	return err
}

// kindOfText is the one place where an error is told by its text: for these,
// containers/image v5.36 has no type that others can see. Its tests make each of
// them through the library, so that a new wording is noticed.
func kindOfText(err error) (errdefs.Kind, bool) {
	text := ofUpstream(err).Error()
	// Harbor and registry.redhat.io say NOT_FOUND where the protocol has
	// MANIFEST_UNKNOWN; containers/image reads such a code as "unknown".
	var reply errcode.Error
	if errors.As(err, &reply) && reply.Code == errcode.ErrorCodeUnknown && strings.Contains(strings.ToLower(reply.Message), "not found") {
		return errdefs.NotFound, true
	}
	if m := statusPattern.FindStringSubmatch(text); m != nil {
		code, err := strconv.Atoi(m[1])
		return kindOfStatus(code), err == nil
	}
	if strings.Contains(text, "exceeded maximum allowed size of ") { // internal/iolimits.ReadAtMost
		return errdefs.TooLarge, true
	}
	return errdefs.Internal, false
}
