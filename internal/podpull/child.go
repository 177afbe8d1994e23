package podpull

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// order is what a child is asked to fetch.
type order struct {
	Name        string              `json:"name"`
	Credentials registryauth.Open   `json:"credentials"`
	Namespace   string              `json:"namespace,omitempty"`
	Platform    imgspec.Platform    `json:"platform"`
	Limits      manifestonly.Limits `json:"limits"`
	Registry    registry.Config     `json:"registry"`
	Environment []string            `json:"environment,omitempty"`
	Known       []blob              `json:"known,omitempty"`
}

// blob is content that the parent's store has from a repository.
type blob struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	Bytes      []byte        `json:"bytes"`
}

// answer is what a child has fetched.
type answer struct {
	Image manifestonly.Image `json:"image"`
	Stats manifestonly.Stats `json:"stats"`
}

// inherited reports whether a child gets a variable of the daemon's environment:
// those that choose proxies, and those by which containers/image and crypto/x509
// find the node's files. Without the latter a child would read another policy or
// other credentials than the daemon does.
func inherited(name string) bool {
	switch name {
	case "HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR":
		return true
	}
	return isProxy(name)
}

func isProxy(name string) bool {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY":
		return true
	}
	return false
}

// environment returns those of the variables, "name=value", that a child at the place
// gets. In a pod's network its owner says who answers for a proxy and would be sent the
// node's password for it, so it is left out.
func environment(environ []string, place Place) []string {
	var list []string
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		if isProxy(name) && place.NetNS != "" {
			value = withoutUser(value)
		}
		if inherited(name) {
			list = append(list, name+"="+value)
		}
	}
	return list
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

// RunChild is the body of a child that fetches; see [sandbox.Serve].
func RunChild(ctx context.Context, in io.Reader, out io.Writer) error {
	return sandbox.Serve(ctx, in, out, fetch)
}

func fetch(ctx context.Context, o order) (answer, error) {
	for _, variable := range o.Environment {
		// Before anything looks: net/http reads the proxies once.
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return answer{}, errdefs.New(errdefs.Internal, "pull "+o.Name, fmt.Errorf("set %s: %w", name, err))
		}
	}
	img, stats, err := manifestonly.Fetch(ctx, manifestonly.Request{
		Name:        o.Name,
		Credentials: registryauth.Credentials(o.Credentials),
		Namespace:   o.Namespace,
		Platform:    o.Platform,
		Limits:      o.Limits,
	}, registry.New(o.Registry), held(o.Known))
	return answer{Image: img, Stats: stats}, err
}

// held is the part of the parent's store that was sent along.
type held []blob

var _ manifestonly.Holder = held(nil)

// Blob implements [manifestonly.Holder].
func (h held) Blob(_ context.Context, repository string, d digest.Digest) ([]byte, error) {
	for _, b := range h {
		if b.Repository == repository && b.Digest == d {
			return b.Bytes, nil
		}
	}
	return nil, errdefs.New(errdefs.NotFound, "find "+d.String(), nil)
}
