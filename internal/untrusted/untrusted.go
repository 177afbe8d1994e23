// Package untrusted has the rule for pulls from a network whose owner, a tenant, says
// who answers for an address: the node's own credentials are for verified registries.
package untrusted

import (
	"fmt"
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
