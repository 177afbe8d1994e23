package layerpull

import (
	"encoding/json"
	"errors"
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
//	images/<hex>.json              JSON: what is needed to mount an image again; the name is a
//	                               hash of repository@digest
//	tmp/<name>                     what is being made; its maker holds locks/<name>
//	locks/<name>                   flock(2) files: of layers, of images, and of the whole store
//
// Several processes may use one store at once. Nothing is synced to disk: the
// store does not outlive its pod, nor the pod a reboot.
type Store struct{ dir string }

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
		unlock, ok, err := s.tryLock(entry.Name(), unix.LOCK_EX)
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

// has reports whether the layer is complete in the store.
func (s *Store) has(diffID digest.Digest) bool {
	_, err := os.Lstat(s.path("layers", diffID.Encoded()))
	return err == nil
}

// begun reports whether somebody is unpacking the layer, or was until killed.
func (s *Store) begun(diffID digest.Digest) bool {
	_, err := os.Lstat(s.path("tmp", diffID.Encoded()))
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
		size, err := s.layerSize(entry.Name())
		if err != nil {
			return 0, err
		}
		sum += size
	}
	return sum, nil
}

// layerSize returns the bytes of one layer.
func (s *Store) layerSize(name string) (int64, error) {
	data, err := os.ReadFile(s.path("sizes", name))
	if err != nil {
		return 0, storeError("measure layer store", err)
	}
	size, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		return 0, storeError("measure layer store", err)
	}
	return size, nil
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
	// Reference is what was pulled: another repository with the same digest may have
	// another policy, so it is asked for itself.
	Reference imageref.Reference `json:"reference"`
	// Location is where a local image came from: whoever asks for that name in a
	// registry, or for the same content elsewhere, has another policy.
	Location string                  `json:"location,omitempty"`
	Manifest imageref.ManifestDigest `json:"manifest"`
	Config   imageref.ConfigDigest   `json:"config"`
	DiffIDs  []digest.Digest         `json:"diffIDs"`
	Image    imgspec.Image           `json:"image"`
	PulledAt time.Time               `json:"pulledAt"`
	Took     time.Duration           `json:"took"`
}

// pinnedName returns repository@digest: a tag beside it means nothing.
func pinnedName(ref imageref.Reference) string {
	return ref.Repository() + "@" + ref.Digest().String()
}

// recordName is the name of an image's record, of a length that file systems take.
func recordName(ref imageref.Reference) string {
	return digest.FromString(pinnedName(ref)).Encoded() + ".json"
}

// load returns the image if this store has pulled ref before. A record that does
// not fit any more is none: the pull then makes it again.
func (s *Store) load(ref imageref.Reference) (Image, bool) {
	r, err := s.readRecord(recordName(ref))
	if err != nil || r.Location != "" || pinnedName(r.Reference) != pinnedName(ref) {
		return Image{}, false
	}
	layers := make([]layer, 0, len(r.DiffIDs))
	for _, d := range r.DiffIDs {
		if !s.has(d) {
			return Image{}, false
		}
		layers = append(layers, layer{diffID: d})
	}
	img := Image{Manifest: r.Manifest, ConfigDigest: r.Config, Config: r.Image, PulledAt: r.PulledAt, Took: r.Took}
	return img, s.describe(&img, layers) == nil
}

// describe says of an image where its layers are, and how large.
func (s *Store) describe(img *Image, layers []layer) (err error) {
	diffIDs := make([]digest.Digest, 0, len(layers))
	for _, l := range layers {
		diffIDs = append(diffIDs, l.diffID)
	}
	img.Layers = len(layers)
	img.LayerDirs, img.RootDir = s.layerDirs(layers)
	img.Bytes, err = s.size(diffIDs)
	return err
}

// records returns the records of all images.
func (s *Store) records() ([]record, error) {
	entries, err := os.ReadDir(s.path("images", ""))
	if err != nil {
		return nil, storeError("list images", err)
	}
	records := make([]record, 0, len(entries))
	for _, entry := range entries {
		r, err := s.readRecord(entry.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, errdefs.New(errdefs.Internal, "read the image record "+entry.Name(), err)
		}
		records = append(records, r)
	}
	return records, nil
}

func (s *Store) readRecord(name string) (r record, err error) {
	f, err := os.Open(s.path("images", name))
	if err != nil {
		return r, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err == nil && len(data) > maxRecordBytes {
		err = errors.New("record too large")
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && (r.Reference.IsZero() || r.Reference.Digest().IsZero()) {
		err = errors.New("it names no image")
	}
	for _, d := range r.DiffIDs {
		err = errors.Join(err, checkDigest(d))
	}
	return r, err
}

// save records the image; the caller holds the image's lock.
func (s *Store) save(src *source, img Image, layers []layer) error {
	const op = "record image"
	pinned, err := src.ref.Pin(src.ref.Digest()) // without a tag
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	r := record{
		Reference: pinned, Location: src.location, Manifest: img.Manifest, Config: img.ConfigDigest, Image: img.Config,
		PulledAt: img.PulledAt, Took: img.Took,
	}
	for _, l := range layers {
		r.DiffIDs = append(r.DiffIDs, l.diffID)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	tmp := s.path("tmp", imageLock(pinned))
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return storeError(op, err)
	}
	if err := os.Rename(tmp, s.path("images", recordName(pinned))); err != nil {
		return storeError(op, err)
	}
	return nil
}
