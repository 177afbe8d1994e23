package layerpull

import "time"

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

	// DefaultRatio bounds a layer's unpacked bytes to this many times its stored
	// ones, after ratioGrace bytes: zstd makes a bomb 32,000 times its size, and
	// deflate 1,032 times, while what people put into layers stays below 100.
	DefaultRatio = 500
	ratioGrace   = 256 << 20

	// DefaultLayerTimeout and DefaultPullTimeout bound what a registry that sends
	// one byte now and then can hold: a pod that never starts, and its store.
	DefaultLayerTimeout = time.Hour
	DefaultPullTimeout  = 3 * time.Hour
	// DefaultStallTimeout bounds the wait for the next byte of a layer: a
	// connection whose other end has gone says nothing for hours.
	DefaultStallTimeout = time.Minute

	// MemoryLimit is what a process that does nothing but pull should give to
	// [runtime/debug.SetMemoryLimit], to stay below 64 MiB of resident memory: about
	// 30 MiB are in use at most, but for the largest zstd windows, and the garbage
	// collector would let that double.
	MemoryLimit = 40 << 20

	// maxRetries is how often the request for one blob is made again, after
	// firstBackoff, then twice as long each time.
	maxRetries   = 3
	firstBackoff = 500 * time.Millisecond

	// bufferBytes and ringBuffers size the two rings that a layer passes through,
	// and peekBytes the buffer of a decompressor: 2.3 MB for each layer at once.
	bufferBytes = 256 << 10
	ringBuffers = 4
	peekBytes   = 64 << 10

	// defaultParallelLayers is how many layers of one image are fetched at once. More
	// would not make two cores faster, and each costs buffers.
	defaultParallelLayers = 3
	// MaxParallelLayers bounds them whatever a configuration asks for: the buffers of
	// more would break the bound on a pull's memory.
	MaxParallelLayers = 8

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
	// maxDepth bounds how deep an entry may lie, and so the open directories of a
	// walk; maxLinks is the kernel's bound on links in one path. With maxWalkSteps
	// they bound the system calls that one entry may cost.
	maxDepth     = 256
	maxLinks     = 40
	maxWalkSteps = 4096
	// maxOpenDirs is how many directories of one layer are kept open from one entry
	// to the next.
	maxOpenDirs = 64
	// maxSweeps bounds the search for whiteouts beneath directories that become
	// opaque, as a multiple of LayerEntries: nested ones would make it quadratic.
	maxSweeps  = 4
	sweepBatch = 512
	// holeBytes is the unit in which a sparse file's zeros become holes.
	holeBytes = 4096
	// maxXattrs bounds the extended attributes of one entry.
	maxXattrs = 128
	// maxMajor and maxMinor are what the kernel keeps of a device number: beyond
	// them a node would be another device than the archive says.
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1

	// maxZstdWindow bounds the memory of a zstd decoder, in bytes, which the
	// compressed stream chooses. minZstdWindow is what most use: the zstd tool needs
	// --ultra to go beyond it. zstdBudget bounds those that run at once, of which one
	// beyond minZstdWindow is alone.
	maxZstdWindow = 32 << 20
	minZstdWindow = 8 << 20
	zstdBudget    = 16 << 20

	// maxRecordBytes bounds an image record read back from the store.
	maxRecordBytes = maxConfigBytes + 1<<20
)
