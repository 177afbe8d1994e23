package registryerr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"testing"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/signature"
	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The kinds of what registries answer are also tested through the library, by packages
// manifestonly/registry and layerpull.
func TestKind(t *testing.T) {
	t.Parallel()
	_, missing := os.ReadFile("/nonexistent/auth.json")
	_, directory := os.ReadFile("/")
	for name, tc := range map[string]struct {
		err  error
		want errdefs.Kind
	}{
		"known":                   {fmt.Errorf("x: %w", errdefs.Newf(errdefs.TooLarge, "a", "b")), errdefs.TooLarge},
		"known, and more in it":   {errdefs.New(errdefs.DigestMismatch, "a", io.ErrUnexpectedEOF), errdefs.DigestMismatch},
		"policy":                  {fmt.Errorf("x: %w", signature.PolicyRequirementError("no")), errdefs.PolicyRefused},
		"invalid signature":       {fmt.Errorf("x: %w", signature.InvalidSignatureError{}), errdefs.PolicyRefused},
		"unauthorized":            {docker.ErrUnauthorizedForCredentials{Err: errors.New("x")}, errdefs.Unauthorized},
		"too many requests":       {fmt.Errorf("x: %w", docker.ErrTooManyRequests), errdefs.RegistryUnavailable},
		"status 404":              {docker.UnexpectedHTTPStatusError{StatusCode: 404}, errdefs.NotFound},
		"status 403":              {docker.UnexpectedHTTPStatusError{StatusCode: 403}, errdefs.Unauthorized},
		"status 500":              {docker.UnexpectedHTTPStatusError{StatusCode: 500}, errdefs.RegistryUnavailable},
		"code DENIED":             {errcode.ErrorCodeDenied.WithMessage("x"), errdefs.Unauthorized},
		"code BLOB_UNKNOWN":       {v2.ErrorCodeBlobUnknown.WithMessage("x"), errdefs.NotFound},
		"code UNSUPPORTED":        {errcode.ErrorCodeUnsupported.WithMessage("x"), errdefs.RegistryUnavailable},
		"code UNKNOWN, not found": {errcode.ErrorCodeUnknown.WithMessage("artifact not found"), errdefs.NotFound},
		"status in the text":      {errors.New(`reading manifest: StatusCode: 404, "gone"`), errdefs.NotFound},
		"status of a mirror":      {fmt.Errorf("(Mirrors also failed: [m: StatusCode: 404, \"\"]): r: %w", errors.New("no key")), errdefs.Internal},
		"too large":               {errors.New("exceeded maximum allowed size of 4194304 bytes"), errdefs.TooLarge},
		"URL":                     {&url.Error{Op: "Get", URL: "https://r.test", Err: io.EOF}, errdefs.RegistryUnavailable},
		"socket":                  {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}, errdefs.RegistryUnavailable},
		"broken stream":           {io.ErrUnexpectedEOF, errdefs.RegistryUnavailable},
		"a deadline of the net":   {&url.Error{Op: "Get", URL: "https://r.test", Err: context.DeadlineExceeded}, errdefs.RegistryUnavailable},
		"no such file":            {fmt.Errorf("reading auth file: %w", missing), errdefs.Internal},
		"no file":                 {fmt.Errorf("reading auth file: %w", directory), errdefs.Internal},
		"anything else":           {errors.New("missing key client.key"), errdefs.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			NewWithT(t).Expect(Kind(tc.err)).To(Equal(tc.want), "%v", tc.err)
		})
	}
}

func TestScrubHelper(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	cause := errors.New("error getting credentials - err: exit status 1, out: `{\"Secret\":\"hidden\nhidden\"}`")
	scrubbed := ScrubHelper(fmt.Errorf("pinging: %w", cause))
	g.Expect(scrubbed).To(MatchError("pinging: error getting credentials - err: exit status 1, out: `REDACTED`"))
	g.Expect(errors.Is(scrubbed, cause)).To(BeTrue())
	plain := errors.New("out: `kept`")
	g.Expect(ScrubHelper(plain)).To(BeIdenticalTo(plain))
	g.Expect(ScrubHelper(nil)).To(Succeed())
}
