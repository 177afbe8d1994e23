package layerpull

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// room is how many bytes a store can still take, of how many in all.
type room struct{ left, of int64 }

// room returns the lesser of what StoreBytes leaves, of which used bytes are taken,
// and what is free in the store's file system.
func (s *Store) room(limit, used int64) (room, error) {
	r := room{left: max(limit-used, 0), of: limit}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return room{}, storeError("measure layer store", err)
	}
	// A tmpfs without a limit has no blocks at all. Root may use those that are kept for it.
	if free := blocks(fs.Bfree, fs.Bsize); fs.Blocks > 0 && free < r.left {
		r = room{left: free, of: blocks(fs.Blocks, fs.Bsize)}
	}
	return r, nil
}

func blocks(count uint64, size int64) int64 {
	if size <= 0 || count > uint64(math.MaxInt64/size) {
		return math.MaxInt64
	}
	return int64(count) * size
}

// check refuses what cannot fit: layers need at least the bytes that the registry has of
// them, because what is compressed does not shrink when it is unpacked.
func (r room) check(layers []layer) error {
	var need int64
	for _, l := range layers {
		if need += l.size; need < 0 {
			need = math.MaxInt64
			break
		}
	}
	if need > r.left {
		return errdefs.Newf(errdefs.TooLarge, "measure layers", "the image cannot fit: it needs at least %d bytes, the store has room for %d of %d", need, r.left, r.of)
	}
	return nil
}
