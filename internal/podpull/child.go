package podpull

import (
	"context"
	"io"

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

// files are the variables by which containers/image and crypto/x509 find the node's
// files. Without them a child would read another policy or other credentials than the
// daemon does.
func files() []string {
	return []string{"HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR"}
}

// RunChild is the body of a child that fetches; see [sandbox.Serve].
func RunChild(ctx context.Context, in io.Reader, out io.Writer) error {
	return sandbox.Serve(ctx, in, out, fetch)
}

func fetch(ctx context.Context, o order, _ sandbox.Report) (answer, error) {
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
