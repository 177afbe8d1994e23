package taskclient

import (
	"bytes"
	"slices"
	"strings"
)

// inherited are the variables that a shim gets of its caller's. CRI-O gives all of its
// own, which are a service's; those of a person's shell may be secret, and everything that
// a shim starts can read them.
func inherited() []string {
	return []string{
		"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL",
		// How a pull reaches its registry, and whom it trusts.
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR",
		"KATA_CONF_FILE", // where Kata's shims look for their configuration first
		"NOTIFY_SOCKET", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS",
	}
}

// environ is the environment of a shim: what it may inherit, and what containerd's
// shim.Command sets.
func environ(own []string) []string {
	var env []string
	for _, entry := range own {
		if name, _, ok := strings.Cut(entry, "="); ok && slices.Contains(inherited(), name) {
			env = append(env, entry)
		}
	}
	return append(env, "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS=", "GRPC_ADDRESS=", "NAMESPACE="+namespace)
}

// capture keeps the beginning of what a command prints. It embeds no buffer: by that one's
// ReadFrom it would keep all.
type capture struct {
	kept  bytes.Buffer
	limit int
	// over is told when there was more. Zero: the rest is dropped.
	over func()
}

// Write implements io.Writer.
func (c *capture) Write(p []byte) (int, error) {
	keep := min(len(p), c.limit-c.kept.Len())
	c.kept.Write(p[:keep])
	if keep < len(p) && c.over != nil {
		c.over()
		return keep, errFlood()
	}
	return len(p), nil
}
