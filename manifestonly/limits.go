package manifestonly

// Limits on what a registry may make the host read. A read that hits one fails
// with errdefs.TooLarge; nothing is ever truncated.
const (
	// MaxManifestSize bounds a manifest or an index, in bytes. It stops a registry
	// from filling the host's memory with a reply that has no end, and is the
	// limit that the distribution registry itself sets for uploads.
	MaxManifestSize = 4 << 20
	// MaxConfigSize bounds an image config, in bytes, against the same attack: the
	// size in a manifest is the registry's claim, and may be 8 EiB.
	MaxConfigSize = 4 << 20
	// MaxIndexEntries bounds the instances of one index, so that reading it and
	// choosing one stay cheap however an index is made.
	MaxIndexEntries = 1024
	// MaxIndexDepth bounds how many indexes stand between a reference and its
	// image. By digest an index cannot contain itself, but a chain of them could
	// cost one request each for as long as a registry likes.
	MaxIndexDepth = 3
	// MaxIndexBytes bounds all indexes of one image together: they are kept in the
	// image database, beside the manifest.
	MaxIndexBytes = 8 << 20
	// MaxLayers bounds the layers of one image. The overlay file system takes 500
	// lower directories; more could be pulled but never run.
	MaxLayers = 500
	// MaxSignatures and MaxSignatureBytes bound the signatures kept with a
	// record: they are stored in the image database that CRI-O reads whole.
	MaxSignatures     = 128
	MaxSignatureBytes = 4 << 20
	// MaxCandidates bounds the registries that one short name is tried at, so
	// that a long search list cannot turn one pull into hundreds.
	MaxCandidates = 32
)
