package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/guest/bundle"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
)

// cleanupTimeout bounds the waiting for others that make bundles, each for milliseconds.
const cleanupTimeout = 10 * time.Second

// maxRecord bounds the record of a pulled image: an image config has at most 4 MiB.
const maxRecord = 8 << 20

// Pulled is an image that this guest has. Its JSON is an interface for scripts.
type Pulled struct {
	// Name is what the last pull asked for.
	Name string `json:"name"`
	// Reference is the image with its digest, and ManifestDigest the digest of the
	// instance that was pulled.
	Reference      string `json:"reference"`
	ManifestDigest string `json:"manifest_digest"`
	ImageID        string `json:"image_id"`
	// Layers counts the layers of the image, and Bytes is what they unpack to.
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`
	// FetchedLayers and FetchedBytes are what the last pull took from the registry.
	FetchedLayers int       `json:"fetched_layers"`
	FetchedBytes  int64     `json:"fetched_bytes"`
	PulledAt      time.Time `json:"pulled_at"`
	// Config is the image config.
	Config imgspec.Image `json:"config"`
}

// Pull pulls the image and, unless bundlePath is "", makes a bundle of it there; then it
// tells the attestation agent. progress, which may be nil, is as in [layerpull.Config].
// A failure takes the bundle back, and leaves complete layers for the next attempt.
//
// Errors are those of package layerpull; InvalidArgument for a name or a bundle path that
// is not allowed; InUse for a bundle that has a config.json or is being made;
// Unavailable for an attestation agent that does not answer.
func (g *Guest) Pull(ctx context.Context, name, bundlePath string, progress func(layerpull.Progress)) (Pulled, error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	if len(name) > maxName || name == "" {
		return Pulled{}, errdefs.Newf(errdefs.InvalidArgument, "pull", "the name of the image has %d bytes, allowed are 1-%d", len(name), maxName)
	}
	pulled, err := g.pull(ctx, name, bundlePath, progress)
	if err != nil {
		return Pulled{}, errdefs.New(errdefs.KindOf(err), "pull "+name+" in the guest", err)
	}
	return pulled, nil
}

func (g *Guest) pull(ctx context.Context, name, bundlePath string, progress func(layerpull.Progress)) (Pulled, error) {
	release, err := g.claim(ctx, bundlePath)
	if err != nil {
		return Pulled{}, err
	}
	defer release()
	l, err := g.load(ctx)
	if err != nil {
		return Pulled{}, err
	}
	if bundlePath != "" { // before there is work
		if err := l.keeper.Check(bundlePath); err != nil {
			return Pulled{}, err
		}
	}
	config := l.pull
	config.Progress = progress
	ref, img, err := l.layers(ctx, name, config, g.opts.Locations)
	if err != nil {
		return Pulled{}, err
	}
	pulled := newPulled(name, ref, img)
	if err := l.record(pulled); err != nil {
		return Pulled{}, err
	}
	if bundlePath != "" {
		if err := l.bundle(ctx, bundlePath, ref, img); err != nil {
			return Pulled{}, err
		}
	}
	if err := g.measure(ctx, name, pulled.ManifestDigest); err != nil {
		// What is not measured must not run.
		return Pulled{}, errors.Join(err, l.takeBack(ctx, bundlePath))
	}
	return pulled, nil
}

// layers brings the layers of an image into the store and returns what they are of.
func (l *loaded) layers(ctx context.Context, name string, config layerpull.Config, locations bool) (imageref.Reference, layerpull.Image, error) {
	if locations && layerpull.IsLocation(name) {
		return layerpull.PullLocation(ctx, name, l.store, config)
	}
	ref, err := l.pin(ctx, name)
	if err != nil {
		return ref, layerpull.Image{}, err
	}
	img, err := layerpull.Pull(ctx, ref, l.store, config)
	return ref, img, err
}

func (l *loaded) bundle(ctx context.Context, path string, ref imageref.Reference, img layerpull.Image) error {
	layers := bundle.Layers{Image: ref.String(), Dirs: img.LayerDirs, RootDir: img.RootDir}
	return l.keeper.Make(ctx, path, layers, func(rootfs string) ([]byte, error) {
		return runtimeConfig(img.Config, rootfs, filepath.Join(path, "rootfs"))
	})
}

// takeBack removes a bundle that was just made, also when the caller is gone.
func (l *loaded) takeBack(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return l.keeper.Remove(ctx, path)
}

// claim reserves a place among the pulls, and the bundle: of two pulls into one bundle
// the second is refused.
func (g *Guest) claim(ctx context.Context, bundlePath string) (release func(), err error) {
	g.mu.Lock()
	_, taken := g.busy[bundlePath]
	if !taken && bundlePath != "" {
		g.busy[bundlePath] = struct{}{}
	}
	g.mu.Unlock()
	if taken {
		return nil, errdefs.Newf(errdefs.InUse, "begin bundle", "another pull into %s is under way", bundlePath)
	}
	forget := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.busy, bundlePath)
	}
	select {
	case g.slots <- struct{}{}:
		return func() { <-g.slots; forget() }, nil
	case <-ctx.Done():
		forget()
		return nil, errdefs.Newf(errdefs.KindOf(ctx.Err()), "wait for other pulls", "%d at once are allowed: %w", maxPulls, ctx.Err())
	}
}

func newPulled(name string, ref imageref.Reference, img layerpull.Image) Pulled {
	return Pulled{
		Name: name, Reference: ref.String(), ManifestDigest: img.Manifest.String(), ImageID: img.ConfigDigest.ImageID().String(),
		Layers: img.Layers, Bytes: img.Bytes, FetchedLayers: img.FetchedLayers, FetchedBytes: img.FetchedBytes,
		PulledAt: time.Now().UTC(), Config: img.Config,
	}
}

// record notes the image for Images; it is written in one step.
func (l *loaded) record(p Pulled) error {
	const op = "record image"
	data, err := json.Marshal(p)
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	f, err := os.CreateTemp(filepath.Join(l.dir, "pulled"), ".new-")
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(l.dir, "pulled", p.ImageID+".json"))
	}
	if err != nil {
		return errdefs.New(errdefs.Internal, op, errors.Join(err, os.RemoveAll(f.Name())))
	}
	return nil
}

// Images returns the images that were pulled into the work directory, newest first. It
// needs no network, and nothing of the configuration but the work directory.
func (g *Guest) Images() ([]Pulled, error) {
	const op = "list images"
	conf, err := g.config()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(conf.WorkDir, "pulled")
	// Glob takes a directory that cannot be read for an empty one.
	if _, err := os.ReadDir(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	list := make([]Pulled, 0, len(files))
	for _, file := range files {
		p, err := readPulled(file)
		if err != nil {
			return nil, errdefs.New(errdefs.Internal, op, err)
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Pulled) int { return b.PulledAt.Compare(a.PulledAt) })
	return list, nil
}

func readPulled(file string) (p Pulled, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return p, err
	}
	if info.Size() > maxRecord {
		return p, fmt.Errorf("%s has over %d bytes", file, maxRecord)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(data, &p)
}

// minPrefix is the shortest beginning of an image ID that names one, as in CRI-O.
const minPrefix = 3

// Find returns the image with the given name or reference, manifest digest or image ID, of
// which a beginning that no other image has will do. None is NotFound.
func (g *Guest) Find(name string) (Pulled, error) {
	list, err := g.Images()
	if err != nil {
		return Pulled{}, err
	}
	var byPrefix []Pulled
	for _, p := range list {
		if name == p.Name || name == p.Reference || name == p.ManifestDigest || name == p.ImageID {
			return p, nil
		}
		if len(name) >= minPrefix && strings.HasPrefix(p.ImageID, name) {
			byPrefix = append(byPrefix, p)
		}
	}
	if len(byPrefix) != 1 {
		return Pulled{}, errdefs.Newf(errdefs.NotFound, "find "+name, "this guest has no such image, or several")
	}
	return byPrefix[0], nil
}
