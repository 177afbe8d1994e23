package layerpull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Store keeps the unpacked layers of one pod in a directory, usually a tmpfs:
//
//	layers/<hex of diff ID>        one unpacked layer; it exists only when complete
//	sizes/<hex of diff ID>         its size in bytes
//	roots/<hex of diff ID>         empty; it exists when the layer's archive has an entry for "/"
//	images/<hex of pinned digest>  JSON: what is needed to mount an image again
//	tmp/<name>                     what is being made; its maker holds locks/<name>
//	locks/<name>                   flock(2) files
//
// Several processes may use one store at once. Nothing is synced to disk: the
// store does not outlive its pod, nor the pod a reboot.
type Store struct{ dir string }

// lockPoll is how long to wait between two tries for a lock. flock(2) itself
// cannot be interrupted by a context.
const lockPoll = 20 * time.Millisecond

// OpenStore opens the store in dir, an absolute path; it creates what is missing
// and removes what dead processes left half made.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, sub := range []string{"layers", "sizes", "roots", "images", "tmp", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, storeError("open layer store", err)
		}
	}
	stale, err := os.ReadDir(s.path("tmp", ""))
	if err != nil {
		return nil, storeError("open layer store", err)
	}
	for _, entry := range stale {
		unlock, ok, err := s.tryLock(entry.Name())
		if err != nil {
			return nil, err
		}
		if !ok {
			continue // someone is at work on it
		}
		err = os.RemoveAll(s.path("tmp", entry.Name()))
		unlock()
		if err != nil {
			return nil, storeError("open layer store", err)
		}
	}
	return s, nil
}

func (s *Store) path(kind, name string) string { return filepath.Join(s.dir, kind, name) }

// storeError gives a failed file operation its kind: a full file system is a
// limit that was hit.
func storeError(op string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errdefs.Newf(errdefs.TooLarge, op, "the layer store is full: %w", err)
	}
	return errdefs.New(errdefs.Internal, op, err)
}

func imageLock(ref imageref.Reference) string {
	return "image-" + ref.Digest().Digest().Encoded()
}

// lock takes the named lock, waiting for it as long as ctx allows.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		unlock, ok, err := s.tryLock(name)
		if ok || err != nil {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another pull of the same content: %w", ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

func (s *Store) tryLock(name string) (unlock func(), ok bool, err error) {
	f, err := os.OpenFile(s.path("locks", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, storeError("lock", err)
	}
	// The close-on-exec descriptor is the lock: a killed process gives it up.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return nil, false, nil
		}
		return nil, false, storeError("lock", err)
	}
	return func() { _ = f.Close() }, true, nil
}

// has reports whether the layer is complete in the store.
func (s *Store) has(diffID digest.Digest) bool {
	_, err := os.Lstat(s.path("layers", diffID.Encoded()))
	return err == nil
}

// begin makes an empty temporary directory for a layer, whose lock the caller
// holds; commit puts it into place.
func (s *Store) begin(diffID digest.Digest) (dir string, err error) {
	dir = s.path("tmp", diffID.Encoded())
	if err := os.RemoveAll(dir); err != nil {
		return "", storeError("prepare layer directory", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", storeError("prepare layer directory", err)
	}
	// Whatever the umask: a container's user must be able to enter its root.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", storeError("prepare layer directory", err)
	}
	return dir, nil
}

func (s *Store) commit(diffID digest.Digest, got unpacked) error {
	name := diffID.Encoded()
	if err := os.WriteFile(s.path("sizes", name), strconv.AppendInt(nil, got.size, 10), 0o600); err != nil {
		return storeError("commit layer", err)
	}
	if got.root {
		if err := os.WriteFile(s.path("roots", name), nil, 0o600); err != nil {
			return storeError("commit layer", err)
		}
	}
	if err := os.Rename(s.path("tmp", name), s.path("layers", name)); err != nil {
		return storeError("commit layer", err)
	}
	return nil
}

// used returns the bytes of all complete layers. Two pulls at once may each use
// what was free when they began: the store's file system is the limit for their sum.
func (s *Store) used() (int64, error) {
	layers, err := os.ReadDir(s.path("layers", ""))
	if err != nil {
		return 0, storeError("measure layer store", err)
	}
	var sum int64
	for _, entry := range layers {
		data, err := os.ReadFile(s.path("sizes", entry.Name()))
		if err != nil {
			return 0, storeError("measure layer store", err)
		}
		size, err := strconv.ParseInt(string(data), 10, 64)
		if err != nil {
			return 0, storeError("measure layer store", err)
		}
		sum += size
	}
	return sum, nil
}

// layerDirs returns the directories of the layers, see [Image.LayerDirs] and
// [Image.RootDir].
func (s *Store) layerDirs(layers []layer) (dirs []string, root string) {
	seen := map[digest.Digest]bool{}
	for _, l := range slices.Backward(layers) {
		if !seen[l.diffID] {
			seen[l.diffID] = true
			dirs = append(dirs, s.path("layers", l.diffID.Encoded()))
		}
		if _, err := os.Lstat(s.path("roots", l.diffID.Encoded())); err == nil && root == "" {
			root = s.path("layers", l.diffID.Encoded())
		}
	}
	slices.Reverse(dirs)
	return dirs, root
}

// record is the JSON form of an image in the store.
type record struct {
	// Repository is where it was pulled from: another repository with the same
	// digest may have another policy, so it is asked again.
	Repository string          `json:"repository"`
	Manifest   string          `json:"manifest"`
	Config     string          `json:"config"`
	DiffIDs    []digest.Digest `json:"diffIDs"`
	Image      imgspec.Image   `json:"image"`
}

// load returns the image if this store has pulled ref before. A record that does
// not fit any more is none: the pull then makes it again.
func (s *Store) load(ref imageref.Reference) (Image, bool) {
	r, err := s.readRecord(ref.Digest().Digest().Encoded())
	if err != nil || r.Repository != ref.Repository() {
		return Image{}, false
	}
	var layers []layer
	for _, d := range r.DiffIDs {
		if d.Validate() != nil || !s.has(d) {
			return Image{}, false
		}
		layers = append(layers, layer{diffID: d})
	}
	m, err := imageref.ParseManifestDigest(r.Manifest)
	if err != nil {
		return Image{}, false
	}
	c, err := imageref.ParseConfigDigest(r.Config)
	if err != nil {
		return Image{}, false
	}
	img := Image{Manifest: m, ConfigDigest: c, Config: r.Image}
	img.LayerDirs, img.RootDir = s.layerDirs(layers)
	return img, true
}

func (s *Store) readRecord(name string) (r record, err error) {
	f, err := os.Open(s.path("images", name+".json"))
	if err != nil {
		return r, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err == nil && len(data) > maxRecordBytes {
		err = errors.New("record too large")
	}
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}

// save records the image; the caller holds the image's lock.
func (s *Store) save(ref imageref.Reference, img Image, layers []layer) error {
	r := record{
		Repository: ref.Repository(), Manifest: img.Manifest.String(), Config: img.ConfigDigest.String(), Image: img.Config,
	}
	for _, l := range layers {
		r.DiffIDs = append(r.DiffIDs, l.diffID)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return errdefs.New(errdefs.Internal, "record image", err)
	}
	tmp := s.path("tmp", imageLock(ref))
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return storeError("record image", err)
	}
	if err := os.Rename(tmp, s.path("images", ref.Digest().Digest().Encoded()+".json")); err != nil {
		return storeError("record image", err)
	}
	return nil
}
