package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Environment returns those of the variables, "name=value", that a child at the place
// may have of its parent's: the proxies, and the named ones. In a pod's network the
// pod's owner says who answers for a proxy and would be sent the node's password for
// it, so it is left out.
func Environment(environ []string, place Place, names ...string) []string {
	var list []string
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		proxy := isProxy(name)
		if proxy && place.NetNS != "" {
			value = withoutUser(value)
		}
		if proxy || slices.Contains(names, name) {
			list = append(list, name+"="+value)
		}
	}
	return list
}

func isProxy(name string) bool {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY":
		return true
	}
	return false
}

// withoutUser returns the address of a proxy, [scheme://][user[:password]@]host[:port],
// without the user.
func withoutUser(address string) string {
	host := address[strings.LastIndex(address, "@")+1:]
	if scheme, _, ok := strings.Cut(address, "://"); ok && len(host) < len(address) {
		return scheme + "://" + host
	}
	return host
}

// setAll puts variables into the process's own environment, from which the kernel does
// not show them.
func setAll(variables []string) error {
	for _, variable := range variables {
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
