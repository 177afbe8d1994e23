package signing

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// Push attaches sigstore signatures to a manifest in a real registry, by plain
// HTTP and without credentials. repository is "registry/repository".
func Push(ctx context.Context, repository string, d digest.Digest, attachments ...fakeregistry.Attachment) error {
	tag, err := name.NewTag(repository+":"+fakeregistry.AttachmentTag(d), name.Insecure)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", repository, err)
	}
	layers := make([]mutate.Addendum, 0, len(attachments))
	for _, a := range attachments {
		mediaType := types.MediaType(a.MediaType)
		if mediaType == "" {
			mediaType = fakeregistry.SigstoreMediaType
		}
		layers = append(layers, mutate.Addendum{Layer: static.NewLayer(a.Payload, mediaType), Annotations: a.Annotations, MediaType: mediaType})
	}
	var image = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if image, err = mutate.Append(image, layers...); err != nil {
		return fmt.Errorf("attach to %s: %w", repository, err)
	}
	if err := remote.Write(tag, image, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("attach to %s: %w", repository, err)
	}
	return nil
}
