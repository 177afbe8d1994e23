package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// The directories of a store: the layers, which are the layer engine's, what the
// containers write, and the temporary files of a pull.
const (
	imagesDir     = "images"
	containersDir = "containers"
	tempDir       = "temp"
	storeDirMode  = 0o700
)

// The kinds of a store.
const (
	storeInMemory = "memory"
	storeOnDisk   = "disk"
)

// A file without content takes no page of a tmpfs, and yet about this much of the kernel's
// memory: millions of them would get around the store's size. The least is for a store
// that only a test would make.
const (
	inodeBytes = 1 << 10
	minInodes  = 1 << 10
)

// storeFlags are those of the file systems that hold layers: what containers run is on
// overlays, which have flags of their own.
const storeFlags = unix.MS_NOSUID | unix.MS_NODEV

// store is a pod's layers and the file systems on them: a tmpfs, or a directory of a
// disk, that only the shim's mount namespace shows at dir. With the namespace the tmpfs
// is gone, and the mounts are; the directory goes with the pod's state.
type store struct {
	pod pod.Pod
	dir string
	// mounts is served by a thread that the store starts when it is opened.
	mounts chan overlay

	mu sync.Mutex
	// kind is empty until the store is open.
	kind string
	// bytes is what it may hold.
	bytes int64
	// rootfs is set once the directory for user namespaces is there.
	rootfs bool

	usage usage
}

func newStore(p pod.Pod) *store { return &store{pod: p, dir: p.Store(), mounts: make(chan overlay)} }

// open mounts the store if it is not, and lets it have the size that the configuration
// and the pod's memory limit of now give it. Its kind does not change. place is the pod's.
func (s *store) open(cfg Config, place sandbox.Place) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := "open the store of pod " + s.pod.ID()
	if s.kind != "" {
		if err := s.resize(cfg, place); err != nil {
			return errdefs.New(errdefs.Internal, op, err)
		}
		return nil
	}
	// Whatever the configuration says today: what it said before is on the disk. What cannot
	// be removed, such as a file that is immutable, keeps no pod of the node from its store.
	if err := s.pod.SweepStores(cfg.StoreDir); err != nil {
		log.L.WithError(err).Error("what earlier pods left on the disk is still there")
	}
	mount := s.mountMemory
	if cfg.Store == storeOnDisk {
		mount = s.mountDisk
	}
	bytes, err := mount(cfg, place)
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	for _, dir := range []string{imagesDir, containersDir, tempDir} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), storeDirMode); err != nil {
			return errdefs.New(errdefs.Internal, op, errors.Join(err, unix.Unmount(s.dir, unix.MNT_DETACH)))
		}
	}
	s.kind, s.bytes = cfg.Store, bytes
	go serveMounts(s.mounts)
	return nil
}

func (s *store) mountMemory(cfg Config, place sandbox.Place) (int64, error) {
	bytes, err := memorySize(cfg.StoreSize, place.Cgroup)
	if err != nil {
		return 0, err
	}
	options := "mode=0700," + sizeOptions(bytes)
	err = unix.Mount("husk", s.dir, "tmpfs", storeFlags, options+",noswap") // swap is a disk of the host's
	if errors.Is(err, unix.EINVAL) {                                        // Linux before 6.4
		err = unix.Mount("husk", s.dir, "tmpfs", storeFlags, options)
	}
	if err != nil {
		return 0, fmt.Errorf("mount a tmpfs: %w", err)
	}
	return bytes, nil
}

// sizeOptions are those of tmpfs(5) for a store of so many bytes.
func sizeOptions(bytes int64) string {
	return fmt.Sprintf("size=%d,nr_inodes=%d", bytes, max(bytes/inodeBytes, minInodes))
}

// mountDisk gives a directory of the disk the place that a tmpfs would have, so that
// containers see no path of the host's.
func (s *store) mountDisk(cfg Config, _ sandbox.Place) (_ int64, err error) {
	dir, err := s.pod.CreateStore(cfg.StoreDir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	bytes, err := diskSize(cfg.StoreSize, dir)
	if err != nil {
		return 0, err
	}
	// By the descriptor: what has been made is what is mounted.
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), s.dir, "", unix.MS_BIND, ""); err != nil {
		return 0, fmt.Errorf("mount a directory of %s: %w", cfg.StoreDir, err)
	}
	if err := unix.Mount("", s.dir, "", unix.MS_BIND|unix.MS_REMOUNT|storeFlags, ""); err != nil {
		return 0, errors.Join(fmt.Errorf("mount a directory of %s: %w", cfg.StoreDir, err), unix.Unmount(s.dir, unix.MNT_DETACH))
	}
	return bytes, nil
}

// resize follows a pod whose memory limit has changed.
func (s *store) resize(cfg Config, place sandbox.Place) error {
	if s.kind == storeOnDisk {
		return nil // its file system does not change
	}
	bytes, err := memorySize(cfg.StoreSize, place.Cgroup)
	if err != nil || bytes == s.bytes {
		return err
	}
	err = unix.Mount("", s.dir, "", unix.MS_REMOUNT|storeFlags, sizeOptions(bytes))
	if errors.Is(err, unix.EINVAL) {
		return nil // it holds more than that: it stays as it is
	}
	if err != nil {
		return fmt.Errorf("resize the tmpfs: %w", err)
	}
	s.bytes = bytes
	return nil
}

// limit returns how many bytes of layers the store may hold. It must be open.
func (s *store) limit() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// size returns how many bytes the store may hold, how many it does, and its kind; zeros
// and "" before it is open.
func (s *store) size() (limit, used int64, kind string) {
	s.mu.Lock()
	limit, kind = s.bytes, s.kind
	s.mu.Unlock()
	switch kind {
	case storeInMemory:
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err != nil {
			return limit, 0, kind
		}
		return limit, int64(st.Blocks-st.Bfree) * st.Bsize, kind
	case storeOnDisk:
		return limit, s.usage.of(s.dir), kind
	}
	return 0, 0, ""
}

// close unmounts the store.
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kind == "" {
		return nil
	}
	if s.rootfs {
		if err := unix.Unmount(s.pod.Rootfs(), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount the pod's root file systems: %w", err)
		}
		s.rootfs = false
	}
	if err := unix.Unmount(s.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the pod's store: %w", err)
	}
	s.kind = ""
	return nil
}

func (s *store) images() string { return filepath.Join(s.dir, imagesDir) }
func (s *store) temp() string   { return filepath.Join(s.dir, tempDir) }

func (s *store) container(id string) string { return filepath.Join(s.dir, containersDir, id) }
