package registry

import (
	"context"
	"net"
)

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
