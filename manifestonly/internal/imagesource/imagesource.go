// Package imagesource is a [manifestonly.Remote] on an image source of
// containers/image: a registry, or a directory in one of its formats.
package imagesource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containers/image/v5/image"
	"github.com/containers/image/v5/manifest"
	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Runner is what the sources differ in: how a step of a pull is run, and what its
// errors say. Errors of both have an errdefs kind and name the image.
type Runner interface {
	// Step calls fn, more than once if that may help; doing is what an error says
	// was done.
	Step(ctx context.Context, doing string, fn func(context.Context) error) error
	// Fail returns an error of that kind.
	Fail(kind errdefs.Kind, doing string, err error) error
}

// Remote is one image of a source.
type Remote struct {
	ref       imageref.Reference
	src       types.ImageSource
	policy    *signature.PolicyContext
	run       Runner
	manifests map[imageref.ManifestDigest][]byte // what was read or told, by digest
}

var (
	_ manifestonly.Remote = (*Remote)(nil)
	_ manifestonly.Primer = (*Remote)(nil)
)

// New returns the Remote of ref. It owns src and policy.
func New(ref imageref.Reference, src types.ImageSource, policy *signature.PolicyContext, run Runner) *Remote {
	return &Remote{ref: ref, src: src, policy: policy, run: run, manifests: map[imageref.ManifestDigest][]byte{}}
}

// Manifest implements [manifestonly.Remote]. From registries, containers/image reads
// at most 4 MiB, which is MaxManifestSize.
func (r *Remote) Manifest(ctx context.Context, d imageref.ManifestDigest) (body []byte, err error) {
	var instance *digest.Digest // nil: what the reference names
	if !d.IsZero() {
		named := d.Digest()
		instance = &named
	}
	err = r.run.Step(ctx, "read manifest of", func(ctx context.Context) error {
		body, _, err = r.src.GetManifest(ctx, instance)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Checked here already, because containers/image's policy relies on it.
	want := d
	if d.IsZero() {
		want = r.ref.Digest()
	}
	if got := digest.FromBytes(body); !want.IsZero() && got != want.Digest() {
		return nil, r.run.Fail(errdefs.DigestMismatch, "read manifest of", fmt.Errorf("it is %s, not the %s asked for", got, want))
	}
	r.manifests[d] = body
	return body, nil
}

// Prime implements [manifestonly.Primer].
func (r *Remote) Prime(m manifestonly.Blob) { r.manifests[m.Digest] = m.Bytes }

// Verify implements [manifestonly.Remote].
func (r *Remote) Verify(ctx context.Context, d imageref.ManifestDigest) (blobs [][]byte, err error) {
	if r.manifests[d] == nil {
		if _, err := r.Manifest(ctx, d); err != nil {
			return nil, err
		}
	}
	checked := readManifest{image.UnparsedInstance(r.src, nil), r.manifests[d]}
	if !d.IsZero() {
		instance := d.Digest()
		checked.UnparsedImage = image.UnparsedInstance(r.src, &instance)
	}
	err = r.run.Step(ctx, "check signatures of", func(ctx context.Context) error {
		allowed, err := r.policy.IsRunningImageAllowed(ctx, checked)
		if err == nil && !allowed { // not to be expected without an error, but never to be passed
			err = signature.PolicyRequirementError("refused by policy")
		}
		if err != nil {
			return err
		}
		blobs, err = signatureBlobs(ctx, checked.UnparsedImage)
		return err
	})
	return blobs, err
}

// readManifest is an image whose manifest is known, so that the policy checks what
// was read and nothing is read twice. What it embeds gives the signatures.
type readManifest struct {
	*image.UnparsedImage
	body []byte
}

// Manifest implements types.UnparsedImage, which promises that the digest was
// checked.
func (m readManifest) Manifest(context.Context) ([]byte, string, error) {
	return m.body, manifest.GuessMIMEType(m.body), nil
}

// signatureBlobs returns the signatures of an image as they are stored.
func signatureBlobs(ctx context.Context, unparsed *image.UnparsedImage) ([][]byte, error) {
	signatures, err := unparsed.UntrustedSignatures(ctx)
	if err != nil {
		return nil, err
	}
	blobs := make([][]byte, 0, len(signatures))
	for _, s := range signatures {
		blob, err := signatureBlob(s)
		if err != nil {
			return nil, err
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
func (r *Remote) Config(ctx context.Context, config manifestonly.ConfigRef) (body []byte, err error) {
	const op = "read image config of"
	if config.Digest().IsZero() || config.Size() > manifestonly.MaxConfigSize {
		return nil, r.run.Fail(errdefs.InvalidArgument, op, fmt.Errorf("no config, or one of %d bytes", config.Size()))
	}
	err = r.run.Step(ctx, op, func(ctx context.Context) error {
		body, err = r.blob(ctx, config)
		return err
	})
	if err != nil {
		return nil, err
	}
	if int64(len(body)) != config.Size() {
		return nil, r.run.Fail(errdefs.DigestMismatch, op,
			fmt.Errorf("config %s is not of the %d bytes that the manifest says", config.Digest(), config.Size()))
	}
	if got := config.Digest().Digest().Algorithm().FromBytes(body); got != config.Digest().Digest() {
		return nil, r.run.Fail(errdefs.DigestMismatch, op, fmt.Errorf("config is %s, not the %s asked for", got, config.Digest()))
	}
	return body, nil
}

// blob reads a config, and a byte more than it should have if there is one.
func (r *Remote) blob(ctx context.Context, config manifestonly.ConfigRef) (body []byte, err error) {
	// No URLs are passed on: a descriptor must not send the host elsewhere.
	stream, _, err := r.src.GetBlob(ctx, types.BlobInfo{Digest: config.Digest().Digest(), Size: config.Size()}, none.NoCache)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	return io.ReadAll(io.LimitReader(stream, config.Size()+1))
}

// Close implements [manifestonly.Remote].
func (r *Remote) Close() error {
	return errors.Join(r.src.Close(), r.policy.Destroy())
}
