package layerpull

// What a registry, an image or a key directory may make this process do. A limit
// that is hit is an error of kind TooLarge; nothing is ever truncated.
const (
	// DefaultLayerBytes bounds one unpacked layer: a decompression bomb is a few
	// megabytes that unpack to terabytes.
	DefaultLayerBytes = 64 << 30
	// DefaultStoreBytes bounds a pod's store, so that one pod cannot fill the disk
	// it shares with others. A store on a tmpfs has the tmpfs's own limit as well.
	DefaultStoreBytes = 128 << 30
	// DefaultLayerEntries bounds the entries of one layer: empty files cost no
	// bytes, but inodes and kernel memory.
	DefaultLayerEntries = 2_000_000

	// parallelLayers is how many layers of one image are fetched at once. More
	// would not make two cores faster, and each costs buffers.
	parallelLayers = 3

	// maxIndexDepth bounds the indexes between a reference and its manifest, as
	// manifestonly.MaxIndexDepth does on the host: what is accepted there runs here.
	maxIndexDepth = 3
	// maxManifestBytes and maxConfigBytes bound what is read whole into memory;
	// a size in a descriptor is the registry's claim. They are the host side's.
	maxManifestBytes = 4 << 20
	maxConfigBytes   = 4 << 20
	// maxLayers bounds the layers of an image: overlayfs takes 500 lower directories.
	maxLayers = 500
	// maxNameBytes bounds the path and the link target of an entry, to PATH_MAX:
	// archive/tar lets a PAX header hold a megabyte, and each component of a path
	// costs system calls.
	maxNameBytes = 4096
	// maxZstdWindow bounds the memory of a zstd decoder, in bytes, which the
	// compressed stream chooses. The zstd tool needs --ultra to go beyond 8 MiB.
	maxZstdWindow = 32 << 20

	// maxKeyFiles and maxKeyBytes bound the key directory, which is meant to hold
	// a few keys: a wrong path in the configuration must not make a pull read a
	// whole file system.
	maxKeyFiles = 64
	maxKeyBytes = 64 << 10
	// maxRecordBytes bounds an image record read back from the store.
	maxRecordBytes = maxConfigBytes + 1<<20
)
