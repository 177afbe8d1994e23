package registry

import (
	"context"
	"fmt"
	"net"
	"slices"

	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// noAuthFile stands for an auth file without credentials: containers/image takes one
// that does not exist to be empty.
const noAuthFile = "/nonexistent/husk-withheld-auth.json"

// unverified reports whether nothing verifies who answers for a registry or for one of
// its mirrors. registry is what registries.conf says of it; nil for nothing.
func unverified(sys *types.SystemContext, registry *sysregistriesv2.Registry) bool {
	if sys.DockerInsecureSkipTLSVerify == types.OptionalBoolTrue || registry != nil && registry.Insecure {
		return true
	}
	return registry != nil && slices.ContainsFunc(registry.Mirrors, func(m sysregistriesv2.Endpoint) bool { return m.Insecure })
}

// withhold takes the node's own credentials out of sys: where nothing verifies who
// answers, they would be given to whoever listens and asks for them.
func withhold(sys *types.SystemContext) error {
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
	// lookup finds the addresses of a host.
	lookup func(ctx context.Context, network, host string) ([]net.IP, error)
}

// parseInsecure reads a list. In an untrusted network no host is looked up: there a
// tenant answers, and could have any registry taken for one in 127.0.0.0/8.
func parseInsecure(list []string, untrusted bool) insecure {
	in := insecure{hosts: map[string]bool{}, lookup: net.DefaultResolver.LookupIP}
	if untrusted {
		in.lookup = func(context.Context, string, string) ([]net.IP, error) { return nil, nil }
	}
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
		if addrs, err = in.lookup(ctx, "ip", host); err != nil {
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
