package layerpull

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/image"
	"github.com/containers/image/v5/manifest"
	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/untrusted"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
)

// layer is one layer of an image: what the manifest and the config say of it.
type layer struct {
	digest    digest.Digest
	size      int64
	mediaType string
	// annotations hold the wrapped keys of an encrypted layer.
	annotations map[string]string
	diffID      digest.Digest
}

const encryptedSuffix = "+encrypted"

func (l layer) encrypted() bool { return strings.HasSuffix(l.mediaType, encryptedSuffix) }

// source is one image in a registry, or in a local directory or file.
type source struct {
	ref imageref.Reference
	// location is where a local image is; "" is a registry.
	location string
	sys      *types.SystemContext
	src      types.ImageSource
	// rules is the signature policy.
	rules *signature.Policy
	// stall is how long a connection may say nothing.
	stall time.Duration
}

// systemContext points containers/image to the configured files.
func (c Config) systemContext() *types.SystemContext {
	return &types.SystemContext{
		AuthFilePath:                c.AuthFile,
		SignaturePolicyPath:         c.PolicyPath,
		SystemRegistriesConfPath:    c.RegistriesConf,
		SystemRegistriesConfDirPath: c.RegistriesConfDir,
		RegistriesDirPath:           c.RegistriesD,
		DockerPerHostCertDirPath:    c.CertsD,
	}
}

// openSource opens the image at its registry, or at the first mirror that has it.
func openSource(ctx context.Context, ref imageref.Reference, cfg Config) (*source, error) {
	const op = "reach the registry"
	if err := checkDigest(ref.Digest().Digest()); err != nil {
		return nil, errdefs.New(errdefs.Unsupported, op, err)
	}
	sys := cfg.systemContext()
	registry, err := sysregistriesv2.FindRegistry(sys, ref.Repository())
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "read registries.conf", err)
	}
	if registry != nil && registry.Blocked {
		// As on the host. It is no PolicyRefused, which kubelet shows as a signature that failed.
		return nil, errdefs.Newf(errdefs.Unsupported, op, "registry %s is blocked in registries.conf", registry.Prefix)
	}
	if err := cfg.authorise(sys, registry); err != nil {
		return nil, errdefs.New(errdefs.KindOf(err), op, err)
	}
	rules, err := signature.DefaultPolicy(sys)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "read signature policy", err)
	}
	pinned, err := ref.Pin(ref.Digest()) // containers/image takes no tag beside a digest
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	dockerRef, err := docker.NewReference(pinned.Named())
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	var src types.ImageSource
	open := func(ctx context.Context) error { // mirrors are tried here, in their order
		src, err = dockerRef.NewImageSource(ctx, sys)
		return err
	}
	if cfg.UntrustedNetwork && !untrusted.Unverified(sys, registry) {
		// Here it is found out where to log in, and all later requests log in there.
		err = untrusted.Encrypted(ctx, open)
	} else {
		err = open(ctx)
	}
	if err != nil {
		return nil, requestError(op, err)
	}
	return &source{ref: ref, sys: sys, src: src, rules: rules, stall: cfg.Timeouts.withDefaults().Stall}, nil
}

// authorise sets whom the registry is told that we are. In a network that is not to
// be trusted, the node's credentials are for registries that are verified; the
// request's own are the pod's, whose network it is.
func (c Config) authorise(sys *types.SystemContext, registry *sysregistriesv2.Registry) error {
	if err := c.Credentials.Apply(sys); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "use the request's credentials", err)
	}
	if c.UntrustedNetwork && untrusted.Unverified(sys, registry) {
		return untrusted.Withhold(sys)
	}
	return nil
}

func (s *source) close() { _ = s.src.Close() }

// resolve finds the image that the reference means, checks it against the
// signature policy, and returns it with its layers, bottom first.
func (s *source) resolve(ctx context.Context, rules policy.Config) (Image, []layer, error) {
	blob, instance, err := s.manifest(ctx)
	if err != nil {
		return Image{}, nil, err
	}
	signed, err := s.checkPolicy(ctx, blob, instance)
	if err != nil {
		return Image{}, nil, err
	}
	const op = "read manifest"
	var m imgspec.Manifest // docker's schema 2 has the same fields
	if err := json.Unmarshal(blob, &m); err != nil {
		return Image{}, nil, errdefs.New(errdefs.NotAnImage, op, err)
	}
	if t := m.Config.MediaType; m.ArtifactType != "" || t != imgspec.MediaTypeImageConfig && t != manifest.DockerV2Schema2ConfigMediaType {
		return Image{}, nil, errdefs.Newf(errdefs.NotAnImage, op, "it is an artifact (type %q, config %q), not a container image", m.ArtifactType, t)
	}
	layers, err := manifestLayers(m)
	if err != nil {
		return Image{}, nil, err
	}
	if err := rules.Check(factsOf(layers, signed)); err != nil {
		return Image{}, nil, err
	}
	img := Image{}
	if img.Config, err = s.config(ctx, m.Config); err != nil {
		return Image{}, nil, err
	}
	if img.Manifest, err = imageref.ParseManifestDigest(digest.FromBytes(blob).String()); err != nil {
		return Image{}, nil, errdefs.New(errdefs.NotAnImage, op, err)
	}
	if img.ConfigDigest, err = imageref.ParseConfigDigest(m.Config.Digest.String()); err != nil {
		return Image{}, nil, errdefs.New(errdefs.NotAnImage, op, err)
	}
	return img, layers, setDiffIDs(layers, img.Config)
}

// manifest returns the manifest of the image; instance is its digest if the
// reference names an index, else nil.
func (s *source) manifest(ctx context.Context) (blob []byte, instance *digest.Digest, err error) {
	blob, mediaType, err := s.fetchManifest(ctx, nil, s.ref.Digest().Digest())
	if err != nil {
		return nil, nil, err
	}
	for depth := 0; manifest.MIMETypeIsMultiImage(mediaType); depth++ {
		if depth == maxIndexDepth {
			return nil, nil, errdefs.Newf(errdefs.NotAnImage, "read index", "indexes nested deeper than %d are not supported", maxIndexDepth)
		}
		list, err := manifest.ListFromBlob(blob, mediaType)
		if err != nil {
			return nil, nil, errdefs.New(errdefs.NotAnImage, "read index", err)
		}
		chosen, err := list.ChooseInstance(s.sys)
		if err != nil {
			return nil, nil, errdefs.Newf(errdefs.NoPlatform, "choose from index", "no image for %s/%s: %w", runtime.GOOS, runtime.GOARCH, err)
		}
		instance = &chosen
		if blob, mediaType, err = s.fetchManifest(ctx, instance, chosen); err != nil {
			return nil, nil, err
		}
	}
	if mediaType != imgspec.MediaTypeImageManifest && mediaType != manifest.DockerV2Schema2MediaType {
		return nil, nil, errdefs.Newf(errdefs.NotAnImage, "read manifest", "media type %q is no image manifest", mediaType)
	}
	// Refuses a body that reads as an index for one program and as a manifest for
	// another (CVE-2021-41190).
	if _, err := manifest.FromBlob(blob, mediaType); err != nil {
		return nil, nil, errdefs.New(errdefs.NotAnImage, "read manifest", err)
	}
	return blob, instance, nil
}

// fetchManifest returns a manifest that has the digest want. What it is follows
// from its body, which the digest covers, not from an HTTP header.
func (s *source) fetchManifest(ctx context.Context, instance *digest.Digest, want digest.Digest) ([]byte, string, error) {
	const op = "fetch manifest"
	if err := checkDigest(want); err != nil {
		return nil, "", errdefs.New(errdefs.NotAnImage, op, err)
	}
	blob, _, err := s.src.GetManifest(ctx, instance)
	if err != nil {
		return nil, "", requestError(op, err)
	}
	if len(blob) > maxManifestBytes {
		return nil, "", errdefs.Newf(errdefs.TooLarge, op, "%d bytes, the limit is %d", len(blob), maxManifestBytes)
	}
	if got := digest.FromBytes(blob); got != want {
		return nil, "", errdefs.Newf(errdefs.DigestMismatch, op, "got %s, want %s", got, want)
	}
	return blob, manifest.GuessMIMEType(blob), nil
}

// checkDigest accepts sha256 alone, as the host side does.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is supported", d)
	}
	return nil
}

// knownManifest is an image whose manifest was read and checked against its digest, so
// that the policy sees what will be used, and nothing is asked for twice. What it embeds
// gives the signatures.
type knownManifest struct {
	*image.UnparsedImage
	body []byte
}

// Manifest implements [types.UnparsedImage].
func (m knownManifest) Manifest(context.Context) ([]byte, string, error) {
	return m.body, manifest.GuessMIMEType(m.body), nil
}

// checkPolicy evaluates the signature policy, as containers/image does when it
// copies an image: on the chosen instance, whose manifest blob is. signed says that a
// signature was verified.
func (s *source) checkPolicy(ctx context.Context, blob []byte, instance *digest.Digest) (signed bool, err error) {
	const op = "check signature policy"
	pc, err := signature.NewPolicyContext(s.rules)
	if err != nil {
		return false, errdefs.New(errdefs.Internal, op, err)
	}
	defer func() {
		if e := pc.Destroy(); err == nil && e != nil {
			err = errdefs.New(errdefs.Internal, op, e)
		}
	}()
	allowed, err := pc.IsRunningImageAllowed(ctx, knownManifest{image.UnparsedInstance(s.src, instance), blob})
	switch {
	case allowed:
		return policy.RequiresSignature(ctx, s.rules, s.src.Reference())
	case err == nil: // not to be expected, but never to be passed
		return false, errdefs.Newf(errdefs.PolicyRefused, op, "refused")
	}
	// Either the policy refuses, or the signatures or keys that it wants could not be read.
	return false, requestError(op, err)
}

// factsOf counts the encrypted layers.
func factsOf(layers []layer, signed bool) policy.Facts {
	facts := policy.Facts{Layers: len(layers), Signed: signed}
	for _, l := range layers {
		if l.encrypted() {
			facts.Encrypted++
		}
	}
	return facts
}

// manifestLayers reads the layers of a manifest; their diff IDs are not known yet.
func manifestLayers(m imgspec.Manifest) ([]layer, error) {
	const op = "read manifest"
	if len(m.Layers) > maxLayers {
		return nil, errdefs.Newf(errdefs.TooLarge, op, "%d layers, the limit is %d", len(m.Layers), maxLayers)
	}
	layers := make([]layer, 0, len(m.Layers))
	for _, d := range m.Layers {
		if err := checkDigest(d.Digest); err != nil {
			return nil, errdefs.New(errdefs.NotAnImage, op, err)
		}
		if d.Size < 0 {
			return nil, errdefs.Newf(errdefs.NotAnImage, op, "layer %s has the size %d", d.Digest, d.Size)
		}
		if err := checkLayerType(d.MediaType); err != nil {
			return nil, errdefs.Newf(errdefs.Unsupported, op, "layer %s: %w", d.Digest, err)
		}
		// URLs are left out on purpose: a layer comes from its registry or not at all.
		layers = append(layers, layer{digest: d.Digest, size: d.Size, mediaType: d.MediaType, annotations: d.Annotations})
	}
	return layers, nil
}

// checkLayerType accepts tar layers. Which compression they have is seen from
// their content, as containers/image does, because many images misname it.
func checkLayerType(mediaType string) error {
	base := strings.TrimSuffix(mediaType, encryptedSuffix)
	for _, suffix := range []string{"+gzip", "+zstd", ".gzip", ".zstd"} {
		base = strings.TrimSuffix(base, suffix)
	}
	switch base {
	case imgspec.MediaTypeImageLayer, manifest.DockerV2SchemaLayerMediaTypeUncompressed:
		return nil
	case imgspec.MediaTypeImageLayerNonDistributable, manifest.DockerV2Schema2ForeignLayerMediaType: //nolint:staticcheck // SA1019: deprecated, and that is why it is named here.
		return fmt.Errorf("media type %q: layers from outside the registry are not fetched", mediaType)
	}
	return fmt.Errorf("media type %q is not supported", mediaType)
}

// config fetches and parses the image config.
func (s *source) config(ctx context.Context, desc imgspec.Descriptor) (imgspec.Image, error) {
	const op = "fetch image config"
	var config imgspec.Image
	if err := checkDigest(desc.Digest); err != nil {
		return config, errdefs.New(errdefs.NotAnImage, op, err)
	}
	if desc.Size < 0 || desc.Size > maxConfigBytes {
		return config, errdefs.Newf(errdefs.TooLarge, op, "%d bytes, the limit is %d", desc.Size, maxConfigBytes)
	}
	body, err := s.blob(ctx, desc.Digest, desc.Size)
	if err != nil {
		return config, err
	}
	defer func() { _ = body.Close() }()
	data, err := io.ReadAll(body)
	if err == nil {
		err = body.verify()
	}
	if err != nil {
		return config, errdefs.New(errdefs.KindOf(err), op, err)
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return config, errdefs.New(errdefs.NotAnImage, "read image config", err)
	}
	if config.OS != "" && config.OS != runtime.GOOS {
		return config, errdefs.Newf(errdefs.NoPlatform, "read image config", "the image is for %s", config.OS)
	}
	return config, nil
}

// setDiffIDs pairs the layers with the diff IDs of the config.
func setDiffIDs(layers []layer, config imgspec.Image) error {
	const op = "read image config"
	ids := config.RootFS.DiffIDs
	if config.RootFS.Type != "layers" || len(ids) != len(layers) {
		return errdefs.Newf(errdefs.NotAnImage, op, "it has rootfs type %q with %d diff IDs for %d layers", config.RootFS.Type, len(ids), len(layers))
	}
	for i, id := range ids {
		if err := checkDigest(id); err != nil {
			return errdefs.New(errdefs.NotAnImage, op, err)
		}
		layers[i].diffID = id
	}
	return nil
}
