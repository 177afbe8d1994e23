package shim

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// usageAge is how old the count of what a store on disk holds may be: it takes a look
	// at every file, and status and metrics ask for it again and again.
	usageAge = 10 * time.Second
	// maxUsageFiles, maxUsageDepth and usageBatch bound a count, its open directories and
	// the names in memory: a container may make millions of files, in one directory or one
	// below the other. What is beyond is not counted.
	maxUsageFiles = 1_000_000
	maxUsageDepth = 256
	usageBatch    = 1024
	// blockSize is the unit of st_blocks, whatever the file system's (stat(2)).
	blockSize = 512
)

// usage is how much a directory holds, counted not too often.
type usage struct {
	mu    sync.Mutex
	bytes int64
	at    time.Time
}

func (u *usage) of(dir string) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.at) > usageAge {
		u.bytes, u.at = diskUsage(dir, maxUsageFiles), time.Now()
	}
	return u.bytes
}

// diskUsage counts the blocks of what is in dir, of files files at most, on the same file
// system, which leaves out the overlays that are mounted in it. Files that vanish
// meanwhile are none.
func diskUsage(dir string, files int) int64 {
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return 0
	}
	c := blockCount{dev: top.Dev, left: files}
	c.add(unix.AT_FDCWD, dir, 0)
	return c.bytes
}

type blockCount struct {
	dev   uint64
	left  int
	bytes int64
}

// add counts what name is in dir. Containers may exchange it for something else at any
// time: no link is followed, and no FIFO is waited for.
func (c *blockCount) add(dir int, name string, depth int) {
	var st unix.Stat_t
	if c.left == 0 || unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != c.dev {
		return
	}
	c.left--
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		c.bytes += st.Blocks * blockSize / max(1, int64(st.Nlink)) // each of its names counts its share
		return
	}
	c.bytes += st.Blocks * blockSize
	if depth == maxUsageDepth {
		return
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }() // read only
	for {
		names, err := f.Readdirnames(usageBatch)
		for _, name := range names {
			c.add(fd, name, depth+1)
		}
		if err != nil || c.left == 0 {
			return
		}
	}
}
