// Package registryerr has the one table from the errors of containers/image's registry
// client to the kinds of package errdefs, for the host's pulls and for the sandbox's.
package registryerr

import (
	"errors"
	"io"
	"io/fs"
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
)

// Kind finds the kind of an error by the types in its chain; Internal is one that it
// does not know, such as a configuration file that cannot be read. Whether the
// caller's context has ended is the caller's to see first: the client says of that
// what it says of a broken connection.
func Kind(err error) errdefs.Kind {
	var (
		known        *errdefs.Error
		policy       signature.PolicyRequirementError
		invalid      signature.InvalidSignatureError
		unauthorized docker.ErrUnauthorizedForCredentials
		status       docker.UnexpectedHTTPStatusError
		coder        errcode.ErrorCoder // errcode.Error and errcode.ErrorCode
	)
	switch {
	case errors.As(err, &known):
		return known.Kind()
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
		urlError  *url.Error
		fileError *fs.PathError
		netError  net.Error
	)
	switch {
	case errors.As(err, &urlError), errors.Is(err, io.ErrUnexpectedEOF):
		return true
	case errors.As(err, &fileError):
		return false // syscall.Errno, which is in it, has the methods of a net.Error too
	}
	return errors.As(err, &netError)
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
// containers/image v5.36 has no type that others can see. The tests of package
// manifestonly/registry make each of them through the library, so that a new wording
// is noticed.
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

// helperOutput finds what a credential helper printed, in the text of the error
// that docker-credential-helpers makes of a helper that fails.
var helperOutput = regexp.MustCompile("(?s)(error (?:getting|listing) credentials - err: [^`]*out: `).*`")

// ScrubHelper removes the output of a credential helper from an error: one that
// fails may have printed the secret before. The chain behind err stays.
func ScrubHelper(err error) error {
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
