package manifestonly

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Media types of docker image manifest version 2, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// encryptedSuffix ends the media type of an encrypted layer (ocicrypt).
const encryptedSuffix = "+encrypted"

// document is any manifest or index. What it is follows from its body alone: a
// Content-Type header is not covered by the digest, and CRI-O, which reads the
// stored bytes later, never sees it.
type document struct {
	SchemaVersion int                 `json:"schemaVersion"`
	MediaType     string              `json:"mediaType"`
	ArtifactType  string              `json:"artifactType"`
	Config        *imgspec.Descriptor `json:"config"`
	Layers        descriptors         `json:"layers"`
	Manifests     descriptors         `json:"manifests"`
	FSLayers      json.RawMessage     `json:"fsLayers"`
}

// descriptors are the entries of an index or the layers of an image.
type descriptors []imgspec.Descriptor

// UnmarshalJSON implements json.Unmarshaler. It counts while it reads: three bytes of
// text make a descriptor of 120, and a list that is too long must not be in memory
// before that is known.
func (l *descriptors) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if start, err := dec.Token(); err != nil || start != json.Delim('[') {
		return errNoList
	}
	list := descriptors{}
	for dec.More() {
		if len(list) == MaxIndexEntries {
			return errTooMany
		}
		var d imgspec.Descriptor
		if err := dec.Decode(&d); err != nil {
			return err
		}
		list = append(list, d)
	}
	*l = list
	return nil
}

var (
	errNoList  = errors.New("not a list of descriptors")
	errTooMany = fmt.Errorf("it has more entries or layers than the limit, %d", MaxIndexEntries)
)

// parseDocument reads a manifest or an index and refuses what is neither. op
// says what is being done and names the reference.
func parseDocument(op string, body []byte) (document, error) {
	var doc document
	if err := json.Unmarshal(body, &doc); errors.Is(err, errTooMany) {
		return document{}, errdefs.New(errdefs.TooLarge, op, err)
	} else if err != nil {
		return document{}, errdefs.Newf(errdefs.NotAnImage, op, "the manifest is not valid JSON: %w", err)
	}
	if doc.SchemaVersion == 1 || doc.FSLayers != nil {
		return document{}, errdefs.Newf(errdefs.NotAnImage, op, "docker manifests of schema 1 are not supported: rebuild or convert the image")
	}
	if doc.SchemaVersion != 2 {
		return document{}, errdefs.Newf(errdefs.NotAnImage, op, "manifest with schemaVersion %d is no image", doc.SchemaVersion)
	}
	// One body that reads as an index for one program and as an image for the
	// next would run as something other than what was checked (CVE-2021-41190).
	if doc.Manifests != nil && (doc.Config != nil || doc.Layers != nil) {
		return document{}, errdefs.Newf(errdefs.NotAnImage, op, "the manifest is ambiguous: it has both manifests and config or layers")
	}
	var ok bool
	switch doc.MediaType {
	case "": // optional in OCI manifests; the fields decide
		ok = doc.Manifests != nil || doc.Config != nil
	case imgspec.MediaTypeImageIndex, dockerList:
		ok = doc.Config == nil && doc.Layers == nil
	case imgspec.MediaTypeImageManifest, dockerManifest:
		ok = doc.Manifests == nil && doc.Config != nil
	default:
		ok = false
	}
	if !ok {
		return document{}, errdefs.Newf(errdefs.NotAnImage, op, "manifest of media type %q is no image", doc.MediaType)
	}
	return doc, nil
}

func (d document) isIndex() bool {
	return d.Manifests != nil || d.MediaType == imgspec.MediaTypeImageIndex || d.MediaType == dockerList
}

// instance returns the entry of an index that serves the platform.
func (d document) instance(op string, p imgspec.Platform) (imgspec.Descriptor, error) {
	entry, ok := choose(d.Manifests, p)
	if !ok {
		w := wanted(p)[0]
		name := strings.TrimSuffix(w.OS+"/"+w.Architecture+"/"+w.Variant, "/")
		return imgspec.Descriptor{}, errdefs.Newf(errdefs.NoPlatform, op, "the index has no image for platform %s", name)
	}
	if err := checkDescriptor(entry, MaxManifestSize); err != nil {
		return imgspec.Descriptor{}, errdefs.Newf(errdefs.KindOf(err), op, "index entry: %w", err)
	}
	return entry, nil
}

// facts is what Husk reads from the manifest of an image.
type facts struct {
	config            ConfigRef
	layers, encrypted int
	layerBytes        int64
}

// image checks that d is a container image and returns what it says.
func (d document) image(op string) (facts, error) {
	if d.ArtifactType != "" {
		return facts{}, errdefs.Newf(errdefs.NotAnImage, op, "it is an artifact of type %q, not a container image", d.ArtifactType)
	}
	if t := d.Config.MediaType; t != imgspec.MediaTypeImageConfig && t != dockerConfig {
		return facts{}, errdefs.Newf(errdefs.NotAnImage, op, "its config is of type %q: an artifact, not a container image", t)
	}
	if err := checkDescriptor(*d.Config, MaxConfigSize); err != nil {
		return facts{}, errdefs.Newf(errdefs.KindOf(err), op, "image config: %w", err)
	}
	if n := len(d.Layers); n > MaxLayers {
		return facts{}, errdefs.Newf(errdefs.TooLarge, op, "the image has %d layers, the limit is %d", n, MaxLayers)
	}
	config, err := imageref.ParseConfigDigest(d.Config.Digest.String())
	if err != nil {
		return facts{}, errdefs.New(errdefs.NotAnImage, op, err)
	}
	f := facts{config: ConfigRef{digest: config, size: d.Config.Size}, layers: len(d.Layers)}
	for i, l := range d.Layers {
		if err := checkDescriptor(l, math.MaxInt64-f.layerBytes); err != nil {
			return facts{}, errdefs.Newf(errdefs.KindOf(err), op, "layer %d: %w", i, err)
		}
		// A manifest that calls a layer its config would make the host fetch it.
		if l.Digest == d.Config.Digest {
			return facts{}, errdefs.Newf(errdefs.NotAnImage, op, "layer %d and the image config are the same blob %s", i, l.Digest)
		}
		f.layerBytes += l.Size
		if strings.HasSuffix(l.MediaType, encryptedSuffix) {
			f.encrypted++
		}
	}
	return f, nil
}

// checkDescriptor refuses a descriptor that cannot be checked or is over the
// limit, before anything is fetched for it.
func checkDescriptor(d imgspec.Descriptor, limit int64) error {
	if err := checkAlgorithm(d.Digest); err != nil {
		return errdefs.New(errdefs.NotAnImage, "check descriptor", err)
	}
	if d.Size < 0 {
		return errdefs.Newf(errdefs.NotAnImage, "check descriptor", "%s has the size %d", d.Digest, d.Size)
	}
	if d.Size > limit {
		return errdefs.Newf(errdefs.TooLarge, "check descriptor", "%s has %d bytes, the limit is %d", d.Digest, d.Size, limit)
	}
	return nil
}

// checkAlgorithm accepts sha256 alone: image IDs and the keys that CRI-O reads
// records by are made from it.
func checkAlgorithm(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is supported", d)
	}
	return nil
}

// check compares content with the digest and the size that named it; a negative
// size is not known.
func check(op, what string, body []byte, want digest.Digest, size int64) error {
	if size >= 0 && int64(len(body)) != size {
		return errdefs.Newf(errdefs.DigestMismatch, op, "%s %s has %d bytes, not the %d it should have", what, want, len(body), size)
	}
	if got := digest.FromBytes(body); got != want {
		return errdefs.Newf(errdefs.DigestMismatch, op, "%s is %s, not the %s asked for", what, got, want)
	}
	return nil
}

// blobOf names content by its own digest.
func blobOf(body []byte) Blob {
	d, err := imageref.ParseManifestDigest(digest.FromBytes(body).String())
	if err != nil { // cannot happen: the digest was just computed
		return Blob{Bytes: body}
	}
	return Blob{Digest: d, Bytes: body}
}
