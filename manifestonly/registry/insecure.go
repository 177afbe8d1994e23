package registry

import (
	"context"
	"fmt"
	"net"

	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// noAuthFile stands for an auth file without credentials: containers/image takes one
// that does not exist to be empty.
const noAuthFile = "/nonexistent/husk-withheld-auth.json"

// withhold takes the node's own credentials out of sys where they could reach
// someone else: in an untrusted network, on a connection that is not verified. The
// answer there comes from whoever listens, and the credentials would be asked for.
func (s *Source) withhold(sys *types.SystemContext, ref imageref.Reference) error {
	if !s.config.UntrustedNetwork {
		return nil
	}
	unverified := sys.DockerInsecureSkipTLSVerify == types.OptionalBoolTrue
	registry, err := sysregistriesv2.FindRegistry(sys, ref.Repository())
	if err != nil {
		return fmt.Errorf("read registries.conf: %w", err)
	}
	if registry != nil {
		unverified = unverified || registry.Insecure
		for _, mirror := range registry.Mirrors {
			unverified = unverified || mirror.Insecure
		}
	}
	if !unverified {
		return nil
	}
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

// insecure is the parsed list of insecure registries.
type insecure struct {
	hosts    map[string]bool
	networks []*net.IPNet
}

func parseInsecure(list []string) insecure {
	in := insecure{hosts: map[string]bool{}}
	for _, entry := range append([]string{"127.0.0.0/8"}, list...) {
		if _, network, err := net.ParseCIDR(entry); err == nil {
			in.networks = append(in.networks, network)
		} else {
			in.hosts[entry] = true
		}
	}
	return in
}

// has reports whether the registry (host[:port]) is insecure. A host that cannot
// be looked up, as behind a proxy, is in no network.
func (in insecure) has(ctx context.Context, registry string) bool {
	if in.hosts[registry] {
		return true
	}
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry // no port
	}
	addrs := []net.IP{net.ParseIP(host)}
	if addrs[0] == nil {
		if addrs, err = net.DefaultResolver.LookupIP(ctx, "ip", host); err != nil {
			return false
		}
	}
	for _, addr := range addrs {
		for _, network := range in.networks {
			if network.Contains(addr) {
				return true
			}
		}
	}
	return false
}
