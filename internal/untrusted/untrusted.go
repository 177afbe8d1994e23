// Package untrusted has the rules for pulls from a network whose owner, a tenant, says
// who answers for an address, and reads what is not encrypted: the node's own credentials
// are for verified registries, and these log nobody in without TLS.
package untrusted

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http/httptrace"
	"slices"

	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// noAuthFile stands for an auth file without credentials: containers/image takes one
// that does not exist to be empty.
const noAuthFile = "/nonexistent/husk-withheld-auth.json"

// Unverified reports whether nothing verifies who answers for a registry or for one of
// its mirrors. registry is what registries.conf says of it; nil for nothing.
func Unverified(sys *types.SystemContext, registry *sysregistriesv2.Registry) bool {
	if sys.DockerInsecureSkipTLSVerify == types.OptionalBoolTrue || registry != nil && registry.Insecure {
		return true
	}
	return registry != nil && slices.ContainsFunc(registry.Mirrors, func(m sysregistriesv2.Endpoint) bool { return m.Insecure })
}

// Withhold takes the node's own credentials out of sys: where nothing verifies who
// answers, they would be given to whoever listens and asks for them.
func Withhold(sys *types.SystemContext) error {
	helpers, err := sysregistriesv2.CredentialHelpers(sys)
	if err != nil {
		return fmt.Errorf("read registries.conf: %w", err)
	}
	for _, helper := range helpers {
		if helper != sysregistriesv2.AuthenticationFileHelper { // asked whatever the auth file
			return errdefs.Newf(errdefs.Unsupported, "withhold the node's credentials",
				"the registry is insecure, and the credential helper %s of registries.conf would be asked on behalf of a pod's network", helper)
		}
	}
	sys.AuthFilePath = noAuthFile
	return nil
}

// Encrypted runs fn with a context in which no request is sent on a connection without
// TLS: a registry that is verified may name a token service that is not, and whoever runs
// the network would read the credentials. A request that is refused is errdefs.Unsupported.
func Encrypted(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := fn(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if _, ok := got.Conn.(*tls.Conn); ok {
			return
		}
		cancel(&plain{got.Conn.RemoteAddr().String()})
		_ = got.Conn.Close() // so that nothing can be written to it
	}}))
	var refused *plain
	if err != nil && errors.As(context.Cause(ctx), &refused) {
		return errdefs.New(errdefs.Unsupported, "log in to the registry", refused)
	}
	return err
}

// plain is why a request was refused.
type plain struct{ address string }

func (p *plain) Error() string {
	return "a connection to " + p.address + " is not encrypted, and whoever runs the network could read credentials"
}
