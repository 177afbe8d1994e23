// Package layerpull is the sandbox side of an image pull: it fetches the layers
// of one pinned image, checks them, decrypts, decompresses and unpacks them.
//
// Each layer becomes a directory of its own in a [Store], with whiteouts as
// overlayfs has them, so that a container's root file system is an overlay of
// these directories. A layer is one streaming pass, from the registry to the
// directory, with no temporary copy of the blob:
//
//	fetch -> size and digest -> decrypt (HMAC) -> decompress -> diff ID -> unpack
//
// Nothing is trusted before the end of that pass: a layer is unpacked into a
// temporary directory and renamed into place only when the blob's size and
// digest, the cipher's HMAC and the diff ID of the image config all held.
//
// registries.conf, certs.d, policy.json and the auth file mean what they mean to
// CRI-O: containers/image reads them.
package layerpull

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull/keys"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// Config says how to reach registries and open layers. In every path, "" means
// the default of containers/image.
type Config struct {
	// AuthFile holds registry credentials, as containers-auth.json(5).
	AuthFile string
	// KeysDir is a directory of PEM files (*.pem, *.key, *.crt) with the private
	// keys, and for PKCS7 the certificates, that open encrypted layers. "" means
	// no keys.
	KeysDir string
	// KeyProviders is an ocicrypt_keyprovider.conf. "" means no key providers.
	KeyProviders string
	// PolicyPath is the signature policy, containers-policy.json(5).
	PolicyPath string
	// RegistriesConf is the file of containers-registries.conf(5).
	RegistriesConf string
	// RegistriesConfDir is its drop-in directory.
	RegistriesConfDir string
	// RegistriesD is the directory of containers-registries.d(5): where signatures are.
	RegistriesD string
	// CertsD is the directory of containers-certs.d(5).
	CertsD string
	// UntrustedNetwork says that whoever runs the network, such as the owner of a pod,
	// may answer for any address: AuthFile is then for verified registries alone. Zero:
	// it is for all.
	UntrustedNetwork bool
	// Rules says which kinds of image may run, encrypted or not, signed or not. Zero
	// means all that the signature policy accepts.
	Rules policy.Config
	// Limits bounds what is unpacked.
	Limits Limits
	// Timeouts bounds how long it may take.
	Timeouts Timeouts
	// Credentials are those of the pull's own request. They are for the registry in
	// the reference, never for its mirrors, and take the place of AuthFile there; with
	// UntrustedNetwork too, where they are the pod's own. Zero: AuthFile.
	Credentials registryauth.Credentials
	// ParallelLayers is how many layers are fetched at once. Zero or less means the
	// default; more than [MaxParallelLayers] counts as that.
	ParallelLayers int
	// Progress is told how far the pull is: when the layers are known, then at most
	// every 100 ms, and at the end, be it a failure; for an image that is in the store
	// already, at the end alone. Calls never overlap, and none comes after the pull. One
	// that blocks holds up the end of the pull. Zero: nobody is told.
	Progress func(Progress)
}

// parallelLayers returns the layers at once.
func (c Config) parallelLayers() int {
	if c.ParallelLayers <= 0 {
		return defaultParallelLayers
	}
	return min(c.ParallelLayers, MaxParallelLayers)
}

// Timeouts bounds the time of one pull, besides the deadline of its context. In
// every field zero means the default.
type Timeouts struct {
	// Layer bounds one layer; zero means [DefaultLayerTimeout].
	Layer time.Duration
	// Pull bounds the whole; zero means [DefaultPullTimeout].
	Pull time.Duration
	// Stall is how long a registry may say nothing before it is asked again; zero
	// means [DefaultStallTimeout].
	Stall time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	return Timeouts{
		Layer: cmp.Or(t.Layer, DefaultLayerTimeout), Pull: cmp.Or(t.Pull, DefaultPullTimeout), Stall: cmp.Or(t.Stall, DefaultStallTimeout),
	}
}

// Limits bounds what one pull may unpack. In every field zero means the default.
type Limits struct {
	// LayerBytes bounds one unpacked layer; zero means [DefaultLayerBytes].
	LayerBytes int64
	// StoreBytes bounds all unpacked layers of a store; zero means [DefaultStoreBytes].
	StoreBytes int64
	// LayerEntries bounds the entries of one layer; zero means [DefaultLayerEntries].
	LayerEntries int
	// Ratio bounds how many times its stored size a layer may unpack to, beyond the
	// first 256 MiB; zero means [DefaultRatio].
	Ratio int
}

func (l Limits) withDefaults() Limits {
	return Limits{
		LayerBytes: cmp.Or(l.LayerBytes, DefaultLayerBytes), StoreBytes: cmp.Or(l.StoreBytes, DefaultStoreBytes),
		LayerEntries: cmp.Or(l.LayerEntries, DefaultLayerEntries), Ratio: cmp.Or(l.Ratio, DefaultRatio),
	}
}

// Image is a pulled image, ready to be mounted.
type Image struct {
	// Manifest is the digest of the chosen instance.
	Manifest imageref.ManifestDigest
	// ConfigDigest gives the image ID.
	ConfigDigest imageref.ConfigDigest
	// Config is the image config.
	Config imgspec.Image
	// LayerDirs are absolute paths, the bottom layer first. An image that has the
	// same layer twice has its directory once, at the upper place: overlayfs takes
	// no directory twice, and the lower one could not be seen anyway. An image
	// without layers has none.
	LayerDirs []string
	// RootDir is the one of LayerDirs that gives the image's "/" its mode and owner:
	// the uppermost whose archive has an entry for it. "" means that none has.
	RootDir string
	// Layers counts the layers as the manifest does, and Bytes is what they unpack to; a
	// layer that is there twice counts its bytes once.
	Layers int
	Bytes  int64
	// PulledAt is when this store was done with it, by this pull or an earlier one, and
	// Took how long that was.
	PulledAt time.Time
	Took     time.Duration
	// FetchedLayers and FetchedBytes count what this pull took from the registry;
	// bytes are as transferred. Layers that were in the store count nothing.
	FetchedLayers int
	FetchedBytes  int64
}

// Pull makes the image ref available in the store. ref must be pinned,
// repository@digest; the digest may be an index's, of which the instance for this
// machine is taken. When this store has already pulled ref, the registry is not
// asked again: the store is one pod's, which has proved its access.
//
// Errors are of package errdefs: InvalidArgument, NotFound, Unauthorized,
// RegistryUnavailable, PolicyRefused, NotAnImage, NoPlatform, Unsupported,
// DigestMismatch, KeyUnavailable, TooLarge (also when the store's file system is
// full, or what is missing cannot fit, before a layer is asked for), Canceled,
// DeadlineExceeded, Internal. A pull that fails leaves no part of a layer; complete
// layers stay for the next attempt.
func Pull(ctx context.Context, ref imageref.Reference, store *Store, cfg Config) (Image, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.withDefaults().Pull)
	defer cancel()
	img, err := pull(ctx, ref, store, cfg)
	if err != nil {
		// A registry may repeat what it was sent.
		return Image{}, errdefs.New(kindOf(ctx, err), "pull "+ref.String(), cfg.Credentials.Scrub(err))
	}
	return img, nil
}

func pull(ctx context.Context, ref imageref.Reference, store *Store, cfg Config) (Image, error) {
	if ref.IsZero() || ref.Digest().IsZero() {
		return Image{}, errdefs.Newf(errdefs.InvalidArgument, "check reference", "not pinned to a digest")
	}
	unlock, err := store.hold(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	began := time.Now()
	if img, ok := store.load(ref); ok {
		if cfg.Progress != nil {
			cfg.Progress(Progress{Layers: img.Layers, LayersDone: img.Layers})
		}
		return img, nil
	}
	src, err := openSource(ctx, ref, cfg)
	if err != nil {
		return Image{}, err
	}
	defer src.close()
	return pullFrom(ctx, src, store, cfg, began)
}

// pullFrom pulls the image of a source, for which the caller has held the store since
// the pull began.
func pullFrom(ctx context.Context, src *source, store *Store, cfg Config, began time.Time) (Image, error) {
	img, layers, err := src.resolve(ctx, cfg.Rules)
	if err != nil {
		return Image{}, err
	}
	if err := fetch(ctx, src, store, cfg, layers, &img); err != nil {
		return Image{}, err
	}
	img.PulledAt, img.Took = time.Now().UTC(), time.Since(began)
	return img, store.save(src, img, layers)
}

// fetch brings the layers into the store, and says so in img.
func fetch(ctx context.Context, src *source, store *Store, cfg Config, layers []layer, img *Image) error {
	p, err := newPuller(src, store, cfg)
	if err != nil {
		return err
	}
	defer p.decoders.close()
	defer p.keys.Close()
	if err := p.fetchAll(ctx, layers); err != nil {
		return err
	}
	img.FetchedLayers, img.FetchedBytes = int(p.layers.Load()), p.bytes.Load()
	return store.describe(img, layers)
}

// puller is one pull in progress.
type puller struct {
	src    *source
	store  *Store
	keys   *keys.Ring
	limits Limits
	// timeouts bounds the time.
	timeouts Timeouts
	// buffers and decoders are the memory of the layers' streams.
	buffers  buffers
	decoders *decoders
	// space is what the store can take, and room how many more bytes may be unpacked.
	space room
	room  atomic.Int64
	// parallel is how many layers are fetched at once, and progress is told of them.
	parallel int
	progress func(Progress)
	meter    *meter
	// layers and bytes count what was fetched.
	layers, bytes atomic.Int64
}

func newPuller(src *source, store *Store, cfg Config) (*puller, error) {
	used, err := store.used()
	if err != nil {
		return nil, err
	}
	limits := cfg.Limits.withDefaults()
	space, err := store.room(limits.StoreBytes, used)
	if err != nil {
		return nil, err
	}
	ring, err := keys.Open(keys.Config{Dir: cfg.KeysDir, ProvidersFile: cfg.KeyProviders})
	if err != nil {
		return nil, err
	}
	p := &puller{
		src: src, store: store, keys: ring, limits: limits, timeouts: cfg.Timeouts.withDefaults(),
		decoders: newDecoders(), space: space, parallel: cfg.parallelLayers(), progress: cfg.Progress,
	}
	p.room.Store(limits.StoreBytes - used)
	return p, nil
}

// fetchAll brings all layers into the store, a few at a time.
func (p *puller) fetchAll(ctx context.Context, layers []layer) error {
	missing, total := p.missing(layers)
	// What another pull of this store is bringing has room already.
	alone := slices.DeleteFunc(slices.Clone(missing), func(l layer) bool { return p.store.begun(l.diffID) })
	if err := p.space.check(alone); err != nil {
		return err
	}
	p.meter = newMeter(p.progress, total)
	defer p.meter.finish()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(p.parallel)
	for _, l := range missing {
		group.Go(func() error {
			if err := p.ensure(ctx, l); err != nil {
				return fmt.Errorf("layer %s: %w", l.digest, err)
			}
			p.meter.layers.Add(1)
			return nil
		})
	}
	return group.Wait()
}

// missing returns the layers that the store does not have, each once, and what a
// report of the progress begins with.
func (p *puller) missing(layers []layer) ([]layer, Progress) {
	total := Progress{Layers: len(layers)}
	var missing []layer
	seen := map[digest.Digest]bool{}
	for _, l := range layers {
		if seen[l.diffID] || p.store.has(l.diffID) {
			total.LayersDone++
			continue
		}
		seen[l.diffID] = true
		missing = append(missing, l)
		total.Bytes += l.size
	}
	return missing, total
}
