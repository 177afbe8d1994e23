package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containers/image/v5/image"
	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// remote is one image at one registry.
type remote struct {
	target
	src       types.ImageSource
	policy    *signature.PolicyContext
	instances map[imageref.ManifestDigest]*image.UnparsedImage
}

// instance returns the manifest with the given digest. containers/image caches
// manifest and signatures in it, so the policy checks what was fetched and
// nothing is fetched twice.
func (r *remote) instance(d imageref.ManifestDigest) *image.UnparsedImage {
	if known := r.instances[d]; known != nil {
		return known
	}
	unparsed := image.UnparsedInstance(r.src, nil)
	if !d.IsZero() {
		digest := d.Digest()
		unparsed = image.UnparsedInstance(r.src, &digest)
	}
	r.instances[d] = unparsed
	return unparsed
}

// Manifest implements [manifestonly.Remote]. containers/image reads at most
// 4 MiB, which is MaxManifestSize.
func (r *remote) Manifest(ctx context.Context, d imageref.ManifestDigest) ([]byte, error) {
	body, _, err := r.instance(d).Manifest(ctx)
	if err != nil {
		return nil, r.mapped(ctx, "read manifest of", err)
	}
	return body, nil
}

// Verify implements [manifestonly.Remote].
func (r *remote) Verify(ctx context.Context, d imageref.ManifestDigest) ([][]byte, error) {
	unparsed := r.instance(d)
	allowed, err := r.policy.IsRunningImageAllowed(ctx, unparsed)
	if err != nil {
		return nil, r.mapped(ctx, "check signatures of", err)
	}
	if !allowed { // not to be expected without an error, but never to be passed
		return nil, r.fail(errdefs.PolicyRefused, "check signatures of", errors.New("refused by policy"))
	}
	signatures, err := unparsed.UntrustedSignatures(ctx)
	if err != nil {
		return nil, r.mapped(ctx, "read signatures of", err)
	}
	blobs := make([][]byte, 0, len(signatures))
	for _, s := range signatures {
		blob, err := signatureBlob(s)
		if err != nil {
			return nil, r.fail(errdefs.Unsupported, "read signatures of", err)
		}
		blobs = append(blobs, blob)
	}
	return blobs, nil
}

// signatureBlob returns a signature in the storage format of containers/image
// (docs/containers-signature-formats in its tree): a simple signature as it is,
// a sigstore one as JSON behind a header. The types are internal there, so their
// methods are found by assertion.
func signatureBlob(s any) ([]byte, error) {
	switch s := s.(type) {
	case interface{ UntrustedSignature() []byte }:
		return s.UntrustedSignature(), nil
	case interface {
		UntrustedMIMEType() string
		UntrustedPayload() []byte
		UntrustedAnnotations() map[string]string
	}:
		body, err := json.Marshal(struct {
			MIMEType    string            `json:"mimeType"`
			Payload     []byte            `json:"payload"`
			Annotations map[string]string `json:"annotations"`
		}{s.UntrustedMIMEType(), s.UntrustedPayload(), s.UntrustedAnnotations()})
		if err != nil {
			return nil, fmt.Errorf("encode sigstore signature: %w", err)
		}
		return append([]byte("\x00sigstore-json\n"), body...), nil
	}
	return nil, fmt.Errorf("signature of unknown kind %T", s)
}

// Config implements [manifestonly.Remote].
func (r *remote) Config(ctx context.Context, config manifestonly.ConfigRef) (body []byte, err error) {
	const op = "read image config of"
	if config.Digest().IsZero() || config.Size() > manifestonly.MaxConfigSize {
		return nil, r.fail(errdefs.InvalidArgument, op, fmt.Errorf("no config, or one of %d bytes", config.Size()))
	}
	// No URLs are passed on: a descriptor must not send the host elsewhere.
	stream, _, err := r.src.GetBlob(ctx, types.BlobInfo{Digest: config.Digest().Digest(), Size: config.Size()}, none.NoCache)
	if err != nil {
		return nil, r.mapped(ctx, op, err)
	}
	defer func() {
		if closeErr := stream.Close(); closeErr != nil && err == nil {
			body, err = nil, r.mapped(ctx, op, closeErr)
		}
	}()
	body, err = io.ReadAll(io.LimitReader(stream, config.Size()+1))
	if err != nil {
		return nil, r.mapped(ctx, op, err)
	}
	if int64(len(body)) != config.Size() {
		return nil, r.fail(errdefs.DigestMismatch, op,
			fmt.Errorf("config %s is not of the %d bytes that the manifest says", config.Digest(), config.Size()))
	}
	if got := config.Digest().Digest().Algorithm().FromBytes(body); got != config.Digest().Digest() {
		return nil, r.fail(errdefs.DigestMismatch, op, fmt.Errorf("config is %s, not the %s asked for", got, config.Digest()))
	}
	return body, nil
}

// Close implements [manifestonly.Remote].
func (r *remote) Close() error {
	return errors.Join(r.src.Close(), r.policy.Destroy())
}
