package manifestonly

import (
	"context"

	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// Source reads what describes an image from a registry. Neither it nor [Remote]
// has a method that can name a layer.
type Source interface {
	// Resolve returns the fully qualified references that name may stand for, in
	// the order to try them (registries.conf: aliases, search registries); at
	// least one when the error is nil. It asks no registry.
	Resolve(ctx context.Context, name string) ([]imageref.Reference, error)
	// Open contacts the registry of ref, authorised by access, and reads the
	// manifest that ref names. The caller closes the Remote.
	Open(ctx context.Context, ref imageref.Reference, access Access) (Remote, error)
}

// Starter is a Source that has something to prepare for each pull.
type Starter interface {
	// Start returns the Source for one pull, and what to call when that has ended.
	Start(ctx context.Context, req Request) (Source, func(), error)
}

// Access says on whose behalf a registry is asked.
type Access struct {
	// Credentials of the request; the zero value leaves the node's auth files.
	Credentials registryauth.Credentials
	// Namespace is the Kubernetes namespace, which may have a signature policy of
	// its own; "" for none.
	Namespace string
}

// Remote is one image at one registry (or the mirror that answered for it). Its
// errors carry errdefs kinds and name the reference and the registry.
type Remote interface {
	// Manifest returns the manifest or index with the given digest; for the zero
	// digest, the one that the reference names. At most MaxManifestSize bytes.
	// The caller checks the digest.
	Manifest(ctx context.Context, d imageref.ManifestDigest) ([]byte, error)
	// Verify applies the signature policy to the instance with the given digest
	// (zero: the reference names no index) and returns its signatures as blobs in
	// the storage format of containers/image.
	Verify(ctx context.Context, instance imageref.ManifestDigest) ([][]byte, error)
	// Config returns the image config, of exactly the size and digest asked for.
	Config(ctx context.Context, config ConfigRef) ([]byte, error)
	// Close releases the connections.
	Close() error
}

// Primer is a Remote that need not read again what the store has. Without it, a
// signature policy that looks at a stored manifest costs one more request.
type Primer interface {
	// Prime tells the Remote a manifest that has the digest by which it is named.
	Prime(manifest Blob)
}

// Stranger is a Remote that may be another registry than the one in its name: nobody
// verified who answers. What it serves proves nothing about who may see what, so
// nothing of the store is used for it.
type Stranger interface {
	// Stranger does nothing.
	Stranger()
}

// ConfigRef names the config blob of an image. Only this package makes one that
// is not zero, from the config field of a checked manifest, so no value of it
// names a layer.
type ConfigRef struct {
	digest imageref.ConfigDigest
	size   int64
}

// Digest returns the digest of the config blob; zero for the zero value.
func (c ConfigRef) Digest() imageref.ConfigDigest { return c.digest }

// Size returns the size of the config blob in bytes, at most MaxConfigSize.
func (c ConfigRef) Size() int64 { return c.size }
