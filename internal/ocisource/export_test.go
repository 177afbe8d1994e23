package ocisource

// What tests compare with, and the second half of Open alone.
const (
	MaxEntries     = maxEntries
	MaxHeaderBytes = maxHeaderBytes
)

// OpenDir is what opens a directory once its name is known.
func OpenDir(path string) (any, error) { return openDir(path) }
