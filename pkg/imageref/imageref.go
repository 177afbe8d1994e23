// Package imageref has the value types that name an image. A tag, a pinned
// reference, a manifest digest, a config digest, an image ID and the ID of a
// record in containers/storage are six different things; here they are six
// types, so that the compiler keeps them apart. Strings exist only at the edge.
package imageref

import (
	"errors"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// ManifestDigest is the digest of a manifest or of an index (OCI image spec,
// "descriptor"). The zero value is no digest.
type ManifestDigest struct{ d digest.Digest }

// ParseManifestDigest checks s, "algorithm:hex".
func ParseManifestDigest(s string) (ManifestDigest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return ManifestDigest{}, fmt.Errorf("parse manifest digest %q: %w", s, err)
	}
	return ManifestDigest{d}, nil
}

// Digest returns the digest as the go-digest type.
func (m ManifestDigest) Digest() digest.Digest { return m.d }

// String returns "algorithm:hex", or "" for the zero value.
func (m ManifestDigest) String() string { return m.d.String() }

// IsZero reports whether m is no digest.
func (m ManifestDigest) IsZero() bool { return m.d == "" }

// ConfigDigest is the digest of an image config blob. The zero value is no digest.
type ConfigDigest struct{ d digest.Digest }

// ParseConfigDigest checks s, "algorithm:hex".
func ParseConfigDigest(s string) (ConfigDigest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return ConfigDigest{}, fmt.Errorf("parse config digest %q: %w", s, err)
	}
	return ConfigDigest{d}, nil
}

// Digest returns the digest as the go-digest type.
func (c ConfigDigest) Digest() digest.Digest { return c.d }

// String returns "algorithm:hex", or "" for the zero value.
func (c ConfigDigest) String() string { return c.d.String() }

// IsZero reports whether c is no digest.
func (c ConfigDigest) IsZero() bool { return c.d == "" }

// ImageID returns the image ID of the image with this config (OCI image spec,
// "ImageID": the SHA-256 digest of the config).
func (c ConfigDigest) ImageID() ImageID { return ImageID{c.d.Encoded()} }

// ImageID is the canonical identity of an image that CRI clients see: the hex
// part of its config digest, 64 digits.
type ImageID struct{ hex string }

// ParseImageID checks s: 64 lower-case hex digits, optionally after "sha256:".
func ParseImageID(s string) (ImageID, error) {
	hex, err := parseHex64(s)
	if err != nil {
		return ImageID{}, fmt.Errorf("parse image ID %q: %w", s, err)
	}
	return ImageID{hex}, nil
}

// String returns the 64 hex digits, or "" for the zero value.
func (i ImageID) String() string { return i.hex }

// IsZero reports whether i is no ID.
func (i ImageID) IsZero() bool { return i.hex == "" }

// StorageID is the ID of an image record in containers/storage: for an ordinary
// image its image ID, for a layer-less record a number of its own.
type StorageID struct{ hex string }

// ParseStorageID checks s: 64 lower-case hex digits.
func ParseStorageID(s string) (StorageID, error) {
	hex, err := parseHex64(s)
	if err != nil || len(s) != 64 {
		return StorageID{}, fmt.Errorf("parse storage ID %q: %w", s, errNotHex64)
	}
	return StorageID{hex}, nil
}

// RecordID derives the storage ID of the layer-less record of one manifest. It
// depends on the manifest digest alone: pulling the same image again finds the
// same record. It is never the config digest, so a full pull of the same image
// gets another ID.
func RecordID(m ManifestDigest) StorageID {
	return StorageID{digest.FromString("husk layer-less record v1\n" + m.String() + "\n").Encoded()}
}

// String returns the 64 hex digits, or "" for the zero value.
func (s StorageID) String() string { return s.hex }

// IsZero reports whether s is no ID.
func (s StorageID) IsZero() bool { return s.hex == "" }

var errNotHex64 = errors.New("want 64 lower-case hex digits")

func parseHex64(s string) (string, error) {
	if len(s) > 7 && s[:7] == "sha256:" {
		s = s[7:]
	}
	if len(s) != 64 {
		return "", errNotHex64
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", errNotHex64
		}
	}
	return s, nil
}

// Reference is a pullable reference: a fully qualified repository with a tag, a
// digest, or both (distribution/reference grammar). The zero value is none.
type Reference struct{ named reference.Named }

// ParseReference normalises s as docker, podman and CRI-O do: "busybox" becomes
// docker.io/library/busybox:latest. Short-name aliases of registries.conf are
// resolved elsewhere, before a Reference exists.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("parse image reference %q: %w", s, err)
	}
	// The library takes "a.b_c/d" for a host and a path, and then for a path alone.
	if reference.Domain(named) == "" {
		return Reference{}, fmt.Errorf("parse image reference %q: what is before the first slash is no host", s)
	}
	return Reference{reference.TagNameOnly(named)}, nil
}

// FromNamed wraps a reference that is already normalised.
func FromNamed(n reference.Named) Reference { return Reference{reference.TagNameOnly(n)} }

// Named returns the reference as the distribution type; nil for the zero value.
func (r Reference) Named() reference.Named { return r.named }

// String returns the fully qualified reference, or "" for the zero value.
func (r Reference) String() string {
	if r.named == nil {
		return ""
	}
	return r.named.String()
}

// IsZero reports whether r is no reference.
func (r Reference) IsZero() bool { return r.named == nil }

// Repository returns "host/path" without tag and digest.
func (r Reference) Repository() string {
	if r.named == nil {
		return ""
	}
	return r.named.Name()
}

// Registry returns the host part, such as "docker.io".
func (r Reference) Registry() string {
	if r.named == nil {
		return ""
	}
	return reference.Domain(r.named)
}

// Tag returns the tag, or "" when the reference has none.
func (r Reference) Tag() string {
	if t, ok := r.named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// Digest returns the digest in the reference; zero when it has none.
func (r Reference) Digest() ManifestDigest {
	if d, ok := r.named.(reference.Digested); ok {
		return ManifestDigest{d.Digest()}
	}
	return ManifestDigest{}
}

// Pin returns repository@digest: the same repository, without the tag.
func (r Reference) Pin(m ManifestDigest) (Reference, error) {
	if r.named == nil {
		return Reference{}, errors.New("pin image reference: no reference")
	}
	c, err := reference.WithDigest(reference.TrimNamed(r.named), m.d)
	if err != nil {
		return Reference{}, fmt.Errorf("pin %s to %s: %w", r, m, err)
	}
	return Reference{c}, nil
}

// Tagged returns repository:tag without the digest; zero when there is no tag.
func (r Reference) Tagged() Reference {
	tag := r.Tag()
	if tag == "" {
		return Reference{}
	}
	t, err := reference.WithTag(reference.TrimNamed(r.named), tag)
	if err != nil { // cannot happen: the tag was parsed
		return Reference{}
	}
	return Reference{t}
}
